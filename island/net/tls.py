"""TLS 1.3 for peer sessions: the listener's certificate is self-signed with the key of the island.

There is no certificate authority. The dialler accepts any certificate, and then requires a
signature over its hash by the key that it expects: see `handshake`.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import tempfile
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from island.errors import PeerMisbehaved
from island.trust.keys import Identity

ALPN = "island/1"
"""Name of the protocol in TLS (ALPN)."""


def certificate(identity: Identity) -> bytes:
    """Return the self-signed certificate of an island in PEM. The bytes are the same each time."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, identity.id)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(identity.private_key.public_key())
        .serial_number(1)
        # The certificate does not expire: the key is the identity, and admission is checked in the handshake.
        .not_valid_before(datetime(2020, 1, 1))
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59))
        .sign(identity.private_key, None)
    )
    return made.public_bytes(serialization.Encoding.PEM)


def listener_context(identity: Identity) -> ssl.SSLContext:
    """Return the TLS context of the listening side."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.set_alpn_protocols([ALPN])
    _load(context, identity.pem() + certificate(identity))
    return context


def dialler_context() -> ssl.SSLContext:
    """Return the TLS context of the dialling side, which accepts any certificate; the handshake verifies it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    return context


def certificate_hash(der: bytes) -> bytes:
    """Return the SHA-256 hash of a certificate (DER), which the handshake signs."""
    return hashlib.sha256(der).digest()


def own_certificate_hash(identity: Identity) -> bytes:
    """Return `certificate_hash` of this island's certificate."""
    return certificate_hash(ssl.PEM_cert_to_DER_cert(certificate(identity).decode("ascii")))


def presented_certificate_hash(tls: ssl.SSLObject | None) -> bytes:
    """Return `certificate_hash` of the listener's certificate.

    Raises `PeerMisbehaved` if there is no certificate, or if the listener uses another ALPN protocol.
    """
    der = tls.getpeercert(binary_form=True) if tls is not None else None
    if not der or tls is None or tls.selected_alpn_protocol() != ALPN:
        raise PeerMisbehaved("the listener does not support the protocol of islands", code="not_an_island")
    return certificate_hash(der)


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    # ssl reads keys from files only. With an anonymous file in memory the key is not written to a disk.
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("island-key", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile() as file:  # created with mode 0600
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
