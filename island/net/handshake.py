"""The handshake in which two islands authenticate each other: `protocols/peer-session-v1.md`, section 2.

dialler → HELLO; listener → HELLO, PROOF; dialler → PROOF [, REDEEM]; listener → READY or ADMITTED.
Each proof is a signature over a transcript that contains the role of the signer, both hellos (with
keys, nonces, network, class) and the hash of the listener's certificate. A proof that is relayed
under another certificate, replayed, or sent back to its signer therefore does not verify.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import blake3

from island import __version__
from island.errors import IslandError, PeerMisbehaved, PeerRefused
from island.kernel import codec
from island.kernel.ids import IslandId, NetworkId, island_id, key_bytes
from island.kernel.ports import Rng
from island.net import frames
from island.net.frames import (
    HANDSHAKE_LIMIT,
    Admitted,
    Frame,
    FrameType,
    Hello,
    KeyProof,
    Redeem,
    Refusal,
    SessionClass,
)
from island.trust.keys import Identity
from island.trust.service import Trust
from island.trust.signing import verify

Role = Literal["dialler", "listener"]


@dataclass(frozen=True, slots=True)
class ProvenPeer:
    """The island at the other end of a connection, which has proved its key."""

    island: IslandId
    name: str
    session: SessionClass
    addresses: tuple[str, ...]
    ticket: bytes
    program: str
    instance: bytes


class WrongKey(PeerMisbehaved):
    """A different island answered than the one that was dialled."""

    code = "wrong_key"

    def __init__(self, expected: IslandId, found: IslandId) -> None:
        super().__init__(
            f"the island at this address has the key {found[:10]}, not the expected key {expected[:10]}",
            hint="The address now belongs to another island, or the connection is intercepted.",
        )
        self.found = found


def transcript(role: Role, network: NetworkId, dialler: bytes, listener: bytes, certificate: bytes) -> bytes:
    """Return the bytes that `role` signs; `dialler` and `listener` are the encoded hellos."""
    first = codec.decode(dialler, Hello)
    second = codec.decode(listener, Hello)
    return codec.encode(
        [
            role,
            bytes.fromhex(network),
            first.key,
            second.key,
            first.nonce,
            second.nonce,
            certificate,
            blake3.blake3(dialler).digest(),
            blake3.blake3(listener).digest(),
        ]
    )


class Handshake:
    """One side of the handshake, over an established TLS connection. Use one object per connection."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        trust: Trust,
        rng: Rng,
        addresses: tuple[str, ...],
        instance: bytes,
    ) -> None:
        self._reader, self._writer, self._trust = reader, writer, trust
        self._identity: Identity = trust.identity
        self._nonce, self._addresses, self._instance = rng.bytes(32), addresses, instance

    async def dial(
        self, session: SessionClass, expected: IslandId, certificate: bytes, *, ticket: bytes = b""
    ) -> ProvenPeer:
        """Run the dialler's side of a control or bulk session, up to READY; return the listener.

        Raises `WrongKey`, `PeerRefused` (with the listener's reason) or `PeerMisbehaved`.
        """
        network = self._trust.network
        if network is None:
            raise PeerMisbehaved("this island does not belong to an archipelago yet", code="no_network")
        mine = self._hello(session, network, ticket)
        theirs, hello = await self._open(mine, network, expected, certificate)
        peer = self._admitted(hello)
        await self._send(FrameType.PROOF, self._prove("dialler", network, mine, theirs, certificate))
        await self._receive(FrameType.READY)
        return peer

    async def redeem(self, network: NetworkId, expected: IslandId, certificate: bytes, secret: bytes) -> bytes:
        """Run the dialler's side of a session of class `join`; return the chain that the inviter issues.

        Raises as `dial` does.
        """
        mine = self._hello("join", network, b"")
        theirs, _ = await self._open(mine, network, expected, certificate)
        await self._send(FrameType.PROOF, self._prove("dialler", network, mine, theirs, certificate))
        # The secret is sent only after the listener has proved the key in the invitation on this connection.
        await self._send(FrameType.REDEEM, codec.encode(Redeem(secret=secret)))
        frame = await self._receive(FrameType.ADMITTED)
        return codec.decode(frame.payload, Admitted).chain

    async def listen(self, certificate: bytes, admit: Callable[[ProvenPeer], None]) -> ProvenPeer:
        """Run the listener's side; return the dialler. `admit` may refuse it by raising `IslandError`.

        A session of class `join` is complete when this returns. Raises `PeerMisbehaved`, or the error
        of `admit` or of the invitation, after sending it to the dialler.
        """
        try:
            return await self._listen(certificate, admit)
        except IslandError as error:
            await self._send(FrameType.GOODBYE, codec.encode(frames.refusal(error)))
            raise

    async def _listen(self, certificate: bytes, admit: Callable[[ProvenPeer], None]) -> ProvenPeer:
        theirs = (await self._receive(FrameType.HELLO)).payload
        hello = codec.decode(theirs, Hello)
        network = self._check_hello(hello)
        mine = self._hello(hello.session, network, b"")
        await self._send(FrameType.HELLO, mine)
        await self._send(FrameType.PROOF, self._prove("listener", network, theirs, mine, certificate))
        await self._check_proof(hello, transcript("dialler", network, theirs, mine, certificate))
        peer = self._admitted(hello)
        admit(peer)
        if hello.session == "join":
            await self._admit_newcomer(peer)
        else:
            await self._send(FrameType.READY, b"")
        return peer

    async def _admit_newcomer(self, peer: ProvenPeer) -> None:
        frame = await self._receive(FrameType.REDEEM)
        secret = codec.decode(frame.payload, Redeem).secret
        chain = await self._trust.redeem(secret, peer.island, peer.name)
        await self._send(FrameType.ADMITTED, codec.encode(Admitted(chain=chain)))

    async def _open(
        self, mine: bytes, network: NetworkId, expected: IslandId, certificate: bytes
    ) -> tuple[bytes, Hello]:
        """Exchange hellos and verify the listener's key, network and proof."""
        await self._send(FrameType.HELLO, mine)
        theirs = (await self._receive(FrameType.HELLO)).payload
        hello = codec.decode(theirs, Hello)
        if (found := island_id(hello.key)) != expected:
            raise WrongKey(expected, found)
        if hello.network != bytes.fromhex(network):
            raise PeerMisbehaved("the listener belongs to another archipelago", code="other_network")
        await self._check_proof(hello, transcript("listener", network, mine, theirs, certificate))
        return theirs, hello

    def _hello(self, session: SessionClass, network: NetworkId, ticket: bytes) -> bytes:
        return codec.encode(
            Hello(
                version=frames.VERSION,
                session=session,
                network=bytes.fromhex(network),
                key=key_bytes(self._identity.id),
                name=self._trust.name,
                nonce=self._nonce,
                program=__version__,
                chain=b"" if session == "join" else self._trust.chain or b"",
                addresses=self._addresses,
                ticket=ticket,
                instance=self._instance,
            )
        )

    def _check_hello(self, hello: Hello) -> NetworkId:
        """Check version, network and key in a dialler's hello; return the network, which is that of this island."""
        network = self._trust.network
        if network is None:
            raise PeerMisbehaved(f"{self._trust.name} does not belong to an archipelago yet", code="no_network")
        if hello.version != frames.VERSION:
            raise PeerMisbehaved(f"version {hello.version} of the protocol is not supported", code="version")
        if hello.network != bytes.fromhex(network):
            raise PeerMisbehaved(
                f"{hello.name} and {self._trust.name} belong to different archipelagos", code="other_network"
            )
        if hello.key == key_bytes(self._identity.id):
            raise PeerMisbehaved("an island dialled itself", code="self")
        return network

    def _admitted(self, hello: Hello) -> ProvenPeer:
        """Return the other side if its chain admits its key; raises `PeerMisbehaved` otherwise.

        A session of class `join` has no chain yet.
        """
        island = island_id(hello.key)
        if hello.session != "join" and self._trust.check_chain(hello.chain) != island:
            raise PeerMisbehaved(f"{hello.name} sent the admission of another key", code="bad_chain")
        return ProvenPeer(
            island, hello.name, hello.session, hello.addresses, hello.ticket, hello.program, hello.instance
        )

    def _prove(self, role: Role, network: NetworkId, dialler: bytes, listener: bytes, certificate: bytes) -> bytes:
        payload = transcript(role, network, dialler, listener, certificate)
        return codec.encode(KeyProof(signature=self._identity.sign("session", network, payload)))

    async def _check_proof(self, hello: Hello, payload: bytes) -> None:
        frame = await self._receive(FrameType.PROOF)
        proof = codec.decode(frame.payload, KeyProof)
        network = NetworkId(hello.network.hex())
        if not verify(island_id(hello.key), "session", network, payload, proof.signature):
            raise PeerMisbehaved(f"{hello.name} did not prove its key", code="bad_proof")

    async def _send(self, kind: FrameType, payload: bytes) -> None:
        self._writer.writelines(frames.pack_frame(kind, 0, payload))
        await self._writer.drain()

    async def _receive(self, kind: FrameType) -> Frame:
        frame = await frames.read_frame(self._reader, HANDSHAKE_LIMIT)
        if frame.type == FrameType.GOODBYE:
            raise refused(frame.payload)
        if frame.type != kind:
            raise PeerMisbehaved(f"a frame {frame.type.name} instead of {kind.name}", code="out_of_order")
        return frame


def refused(payload: bytes) -> PeerRefused:
    """Return the error that another island sent."""
    refusal = codec.decode(payload, Refusal)
    return PeerRefused(_plain(refusal.message), hint=_plain(refusal.hint), code=refusal.code)


def _plain(text: str) -> str:
    """Replace the control characters in a text of another island, which could contain terminal escape sequences."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
