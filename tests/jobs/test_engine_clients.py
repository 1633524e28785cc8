"""How the island logs in to its engines: password, certificates of an own authority, Kerberos."""

from __future__ import annotations

import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from island.config import EngineSection
from island.errors import EngineFailed
from island.jobs.engines.clients import SiteClient
from island.kernel.host_resolver import HostResolver
from island.kernel.work import ThreadWorkers
from tests.standins.livy import PlayedLivy


@pytest.fixture
def workers() -> Iterator[ThreadWorkers]:
    found = ThreadWorkers()
    yield found
    found.close()


@asynccontextmanager
async def livy(seen: list[str], tls: ssl.SSLContext | None = None) -> AsyncIterator[TestServer]:
    """A Livy that notes the header `Authorization` of each request."""
    played = PlayedLivy()

    async def note(request: web.Request) -> web.StreamResponse | None:
        seen.append(request.headers.get("Authorization", ""))
        return None

    played.fault = note
    server = TestServer(played.app())
    await server.start_server(ssl=tls)
    try:
        yield server
    finally:
        await server.close()


def client(home: Path, workers: ThreadWorkers, url: str, **keys: object) -> SiteClient:
    settings = EngineSection(name="cluster", url=url, **keys)  # type: ignore[arg-type]  # each test gives its own keys
    return SiteClient(home, settings, workers, HostResolver(workers))


async def test_a_password_is_read_from_its_file(tmp_path: Path, workers: ThreadWorkers) -> None:
    seen: list[str] = []
    async with livy(seen) as server:
        url = f"http://127.0.0.1:{server.port}"
        found = client(tmp_path, workers, url, user="isl", password_file="pw")
        with pytest.raises(EngineFailed, match="pw"):
            found()
        (tmp_path / "pw").write_text("secret\n")
        (tmp_path / "pw").chmod(0o644)
        with pytest.raises(EngineFailed, match="0644"):
            found()
        (tmp_path / "pw").chmod(0o600)
        await found().version()
        await found.close()
    assert seen == ["Basic aXNsOnNlY3JldA=="]


async def test_a_certificate_is_checked_against_the_authorities_of_the_engine(
    tmp_path: Path, workers: ThreadWorkers
) -> None:
    context = _certified(tmp_path, "localhost")
    async with livy([], context) as server:
        url = f"https://localhost:{server.port}"
        trusted, strange = client(tmp_path, workers, url, ca_file="ca.pem"), client(tmp_path, workers, url)
        assert (await trusted().version()).version == "0.9.0-incubating"
        with pytest.raises(EngineFailed, match="certificate"):
            await strange().version()
        for each in (trusted, strange):
            await each.close()
    with pytest.raises(EngineFailed, match=r"none\.pem"):
        client(tmp_path, workers, url, ca_file="none.pem")()


async def test_kerberos_needs_pyspnego_and_a_ticket(
    tmp_path: Path, workers: ThreadWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tickets are those of a stand-in for pyspnego, since this machine has no Kerberos server."""
    seen: list[str] = []
    async with livy(seen) as server:
        found = client(tmp_path, workers, f"http://localhost:{server.port}", kerberos=True)
        monkeypatch.setitem(sys.modules, "spnego", None)
        with pytest.raises(EngineFailed, match="pyspnego is not installed"):
            await found().version()
        spnego, tickets = _played_spnego(monkeypatch)
        with pytest.raises(EngineFailed, match="no valid Kerberos ticket for HTTP/localhost: expired"):
            await found().version()
        tickets += [b"one", b"two"]
        for _ in range(2):
            await found().version()
        await found.close()
        assert spnego.asked == ("localhost", "HTTP", "kerberos")
    assert seen == ["Negotiate b25l", "Negotiate dHdv"]


def _played_spnego(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, list[bytes]]:
    """A module `spnego` that gives the tickets of a list, and the list."""
    module, exceptions, tickets = ModuleType("spnego"), ModuleType("spnego.exceptions"), list[bytes]()

    class SpnegoError(Exception):
        pass

    class Context:
        def step(self) -> bytes:
            if not tickets:
                raise SpnegoError("expired")
            return tickets.pop(0)

    def new(*, hostname: str, service: str, protocol: str) -> Context:
        module.asked = (hostname, service, protocol)  # type: ignore[attr-defined]  # of this stand-in
        return Context()

    exceptions.SpnegoError = SpnegoError  # type: ignore[attr-defined]  # of this stand-in
    module.client, module.exceptions = new, exceptions  # type: ignore[attr-defined]  # of this stand-in
    monkeypatch.setitem(sys.modules, "spnego", module)
    monkeypatch.setitem(sys.modules, "spnego.exceptions", exceptions)
    return module, tickets


def _certified(folder: Path, host: str) -> ssl.SSLContext:
    """A server's context with a certificate for `host`, whose authority is in `ca.pem`."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context
