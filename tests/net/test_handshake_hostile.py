"""Attacks on the handshake: each ends the connection, and the island goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from island.errors import IslandError, PeerMisbehaved, PeerRefused
from island.kernel import codec
from island.kernel.host_resolver import HostResolver
from island.kernel.ids import NetworkId, key_bytes
from island.kernel.ports import SystemRng
from island.kernel.work import ThreadWorkers
from island.net import frames, tls
from island.net.frames import HANDSHAKE_LIMIT, Frame, FrameType, Hello, KeyProof, Refusal
from island.net.handshake import Handshake, WrongKey, transcript
from island.net.limits import PeerLimits
from island.net.listener import dial
from island.trust.keys import Identity
from tests.islands.sessions import QUICK, Node, admit, archipelago
from tests.standins.loop_time import LoopTime

RNG = SystemRng()


class Raw:
    """A connection to an island on which anything can be said."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.certificate = tls.presented_certificate_hash(writer.get_extra_info("ssl_object"))

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, address: str) -> AsyncIterator[Raw]:
        reader, writer = await dial(address, tls.dialler_context(), QUICK, HostResolver(ThreadWorkers()))
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def send(self, kind: FrameType, payload: bytes, number: int = 0) -> None:
        self.writer.writelines(frames.pack_frame(kind, number, payload))
        await self.writer.drain()

    async def receive(self) -> Frame:
        async with asyncio.timeout(60):
            return await frames.read_frame(self.reader, HANDSHAKE_LIMIT)

    async def goodbye(self) -> Refusal:
        """Read to the GOODBYE, after which the other side hangs up."""
        while (frame := await self.receive()).type is not FrameType.GOODBYE:
            pass
        await self.hung_up()
        return codec.decode(frame.payload, Refusal)

    async def hung_up(self) -> None:
        """Wait until the other side has closed the connection."""
        with contextlib.suppress(OSError):
            async with asyncio.timeout(60):
                while await self.reader.read(65536):
                    pass


def hello_of(node: Node, **changes: Any) -> Hello:
    assert node.trust.network is not None
    plain = Hello(
        version=1,
        session="control",
        network=bytes.fromhex(node.trust.network),
        key=key_bytes(node.id),
        name=node.name,
        nonce=os.urandom(32),
        chain=node.trust.chain or b"",
    )
    return msgspec.structs.replace(plain, **changes)


def prove(identity: Identity, hello: Hello, payload: bytes) -> bytes:
    network = NetworkId(hello.network.hex())
    return codec.encode(KeyProof(signature=identity.sign("session", network, payload)))


@contextlib.asynccontextmanager
async def victim_and_member(folder: Path, limits: PeerLimits = QUICK) -> AsyncIterator[tuple[Node, Node]]:
    """A running island, and another member's identity for the attacker to use; they are not linked."""
    async with archipelago(folder, 2, mesh=False, limits=limits) as (victim, member):
        yield victim, member


async def still_well(victim: Node, member: Node) -> None:
    """The victim links with an honest member."""
    member.knows(victim)
    await member.linked(victim)
    await victim.linked(member)


HOSTILE_BYTES: dict[str, bytes] = {
    "nothing": b"",
    "zero length": b"\x00" * 9,
    "a huge length": b"\xff" * 9,
    "just over the limit": frames.HEAD.pack(HANDSHAKE_LIMIT + 6, FrameType.HELLO, 0),
    "an unknown type": frames.HEAD.pack(5, 99, 0),
    "an http request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a proof first": b"".join(frames.pack_frame(FrameType.PROOF, 0, b"\x80")),
    "a request first": b"".join(frames.pack_frame(FrameType.REQUEST, 1, b"\x00\x00")),
    "a hello of garbage": b"".join(frames.pack_frame(FrameType.HELLO, 0, b"\xc1" * 100)),
    "a hello nested deep": b"".join(frames.pack_frame(FrameType.HELLO, 0, b"\x91" * 10_000 + b"\x90")),
    "a hello that claims a huge map": b"".join(frames.pack_frame(FrameType.HELLO, 0, b"\xdf\xff\xff\xff\xff")),
    "an empty hello": b"".join(frames.pack_frame(FrameType.HELLO, 0, b"\x80")),
    "half a hello": b"".join(frames.pack_frame(FrameType.HELLO, 0, b"\x80" * 400))[:100],
}


@pytest.mark.parametrize("what", HOSTILE_BYTES)
async def test_garbage_ends_the_connection_only(tmp_path: Path, what: str) -> None:
    async with victim_and_member(tmp_path) as (victim, member):
        async with Raw.to(victim.address) as raw:
            raw.writer.write(HOSTILE_BYTES[what])
            if what in {"nothing", "half a hello"}:
                raw.writer.write_eof() if raw.writer.can_write_eof() else raw.writer.close()
            await raw.hung_up()
        await still_well(victim, member)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda _: {"network": bytes(32)}, "other_network"),
        (lambda _: {"version": 2}, "version"),
        (lambda nodes: {"key": key_bytes(nodes[0].id)}, "self"),
    ],
)
async def test_hellos_that_do_not_fit_are_told_why(
    tmp_path: Path, change: Callable[[tuple[Node, Node]], dict[str, Any]], code: str
) -> None:
    async with victim_and_member(tmp_path) as nodes:
        async with Raw.to(nodes[0].address) as raw:
            await raw.send(FrameType.HELLO, codec.encode(hello_of(nodes[1], **change(nodes))))
            assert (await raw.goodbye()).code == code
        await still_well(*nodes)


async def open_with(raw: Raw, hello: Hello) -> tuple[bytes, bytes]:
    """Exchange hellos; the two as encoded."""
    mine = codec.encode(hello)
    await raw.send(FrameType.HELLO, mine)
    theirs = (await raw.receive()).payload
    return mine, theirs


async def test_an_honest_dialler_by_hand_is_let_in(tmp_path: Path) -> None:
    async with victim_and_member(tmp_path) as (victim, member):
        async with Raw.to(victim.address) as raw:
            hello = hello_of(member)
            mine, theirs = await open_with(raw, hello)
            payload = transcript("dialler", victim.trust.network or NetworkId(""), mine, theirs, raw.certificate)
            assert (await raw.receive()).type is FrameType.PROOF
            await raw.send(FrameType.PROOF, prove(member.identity, hello, payload))
            assert (await raw.receive()).type is FrameType.READY
            await victim.linked(member)
        await victim.unlinked(member)


async def test_no_key_without_its_signature(tmp_path: Path) -> None:
    """Wrong signatures: none, another key's, the listener's own sent back, another certificate's, a wrong role's."""
    async with victim_and_member(tmp_path) as (victim, member):
        network = victim.trust.network
        assert network is not None
        stranger = Identity.generate(RNG)

        def payload(role: Any, mine: bytes, theirs: bytes, certificate: bytes) -> bytes:
            return transcript(role, network, mine, theirs, certificate)

        attacks: dict[str, Callable[[Hello, bytes, bytes, bytes, bytes], bytes]] = {
            "zeroes": lambda *_: codec.encode(KeyProof(signature=bytes(64))),
            "another key": lambda h, m, t, c, _: prove(stranger, h, payload("dialler", m, t, c)),
            "reflected": lambda h, m, t, c, proof: proof,
            "wrong role": lambda h, m, t, c, _: prove(member.identity, h, payload("listener", m, t, c)),
            "other certificate": lambda h, m, t, c, _: prove(member.identity, h, payload("dialler", m, t, bytes(32))),
            "other hello": lambda h, m, t, c, _: prove(
                member.identity, h, payload("dialler", codec.encode(hello_of(member)), t, c)
            ),
        }
        for attack in attacks.values():
            async with Raw.to(victim.address) as raw:
                hello = hello_of(member)
                mine, theirs = await open_with(raw, hello)
                proof = (await raw.receive()).payload
                await raw.send(FrameType.PROOF, attack(hello, mine, theirs, raw.certificate, proof))
                assert (await raw.goodbye()).code == "bad_proof"
            assert victim.peers.links() == []
        await still_well(victim, member)


async def test_a_replayed_handshake_fails(tmp_path: Path) -> None:
    async with victim_and_member(tmp_path) as (victim, member):
        hello = hello_of(member)
        async with Raw.to(victim.address) as raw:
            mine, theirs = await open_with(raw, hello)
            payload = transcript("dialler", victim.trust.network or NetworkId(""), mine, theirs, raw.certificate)
            await raw.receive()
            proof = prove(member.identity, hello, payload)
            await raw.send(FrameType.PROOF, proof)
            assert (await raw.receive()).type is FrameType.READY
        async with Raw.to(victim.address) as raw:
            await open_with(raw, hello)
            await raw.receive()
            await raw.send(FrameType.PROOF, proof)
            assert (await raw.goodbye()).code == "bad_proof"


async def test_a_member_of_nothing_and_a_borrowed_chain_are_refused(tmp_path: Path) -> None:
    async with victim_and_member(tmp_path) as (victim, member):
        stranger = Identity.generate(RNG)
        for chain in (b"", member.trust.chain or b"", b"\xc1"):
            async with Raw.to(victim.address) as raw:
                hello = hello_of(member, key=key_bytes(stranger.id), name="stranger", chain=chain)
                mine, theirs = await open_with(raw, hello)
                await raw.receive()
                payload = transcript("dialler", victim.trust.network or NetworkId(""), mine, theirs, raw.certificate)
                await raw.send(FrameType.PROOF, prove(stranger, hello, payload))
                assert (await raw.goodbye()).code in {"bad_chain", "malformed"}
        assert victim.peers.links() == []


@contextlib.asynccontextmanager
async def false_listener(
    identity: Identity, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]
) -> AsyncIterator[str]:
    """A TLS listener with its own certificate; its address."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls.listener_context(identity))
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def handshake_with(address: str, member: Node, expected: Node) -> IslandError:
    """The error with which a member's dial ends."""
    reader, writer = await dial(address, tls.dialler_context(), QUICK, HostResolver(ThreadWorkers()))
    try:
        certificate = tls.presented_certificate_hash(writer.get_extra_info("ssl_object"))
        with pytest.raises(IslandError) as caught:
            async with asyncio.timeout(60):
                await Handshake(reader, writer, member.trust, RNG, (), b"").dial("control", expected.id, certificate)
        return caught.value
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_one_who_stands_between_with_a_certificate_of_his_own_fails(tmp_path: Path) -> None:
    """He passes every frame on, unchanged, both ways: only the certificate is his."""
    async with victim_and_member(tmp_path) as (victim, member):

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async with Raw.to(victim.address) as raw:

                async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                    with contextlib.suppress(OSError):
                        while data := await source.read(65536):
                            target.write(data)
                            await target.drain()

                await asyncio.wait(
                    {asyncio.ensure_future(copy(reader, raw.writer)), asyncio.ensure_future(copy(raw.reader, writer))},
                    return_when=asyncio.FIRST_COMPLETED,
                )
            writer.transport.abort()

        async with false_listener(Identity.generate(RNG), between) as address:
            error = await handshake_with(address, member, victim)
            assert isinstance(error, PeerMisbehaved) and error.code == "bad_proof"
        assert victim.peers.links() == []


async def test_another_island_at_the_address_is_not_taken_for_the_one_dialled(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 3, mesh=False) as (a, b, c):
        error = await handshake_with(c.address, a, b)
        assert isinstance(error, WrongKey) and error.found == c.id
        assert isinstance(await handshake_with(a.address, a, b), PeerRefused)  # an island that dials itself


async def test_a_secret_is_not_given_to_a_false_inviter(tmp_path: Path) -> None:
    heard = bytearray()
    async with contextlib.AsyncExitStack() as stack:
        inviter, newcomer = Node(tmp_path / "a", "inviter"), Node(tmp_path / "b", "newcomer")
        for node in (inviter, newcomer):
            await stack.enter_async_context(node.running())
        false = Identity.generate(RNG)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(IslandError, OSError, asyncio.IncompleteReadError):
                frame = await frames.read_frame(reader, HANDSHAKE_LIMIT)
                heard.extend(frame.payload)
                hello = codec.decode(frame.payload, Hello, limit=HANDSHAKE_LIMIT)
                # He claims the inviter's key, which he cannot prove.
                mine = codec.encode(msgspec.structs.replace(hello, key=key_bytes(inviter.id), nonce=os.urandom(32)))
                writer.writelines(frames.pack_frame(FrameType.HELLO, 0, mine))
                payload = transcript(
                    "listener", NetworkId(hello.network.hex()), frame.payload, mine, tls.own_certificate_hash(false)
                )
                writer.writelines(frames.pack_frame(FrameType.PROOF, 0, prove(false, hello, payload)))
                await writer.drain()
                while data := await reader.read(65536):
                    heard.extend(data)
            writer.transport.abort()

        async with false_listener(false, serve) as address:
            word = await inviter.trust.invite([address])
            with pytest.raises(PeerMisbehaved, match="did not prove its key"):
                await newcomer.peers.join(word)
        assert heard and newcomer.trust.parse_invitation(word).secret not in heard
        assert newcomer.trust.network is None


async def test_slow_and_silent_strangers_are_cut_off_and_bounded(tmp_path: Path) -> None:
    limits = PeerLimits(first_byte_s=30, handshake_s=30, shaking_per_address=4, redial_base_s=0.05, redial_cap_s=0.1)
    time = LoopTime()
    async with victim_and_member(tmp_path, limits) as (victim, member):
        port = victim.peers.port
        assert port is not None
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        ended = [asyncio.ensure_future(each.read(1)) for each, _ in silent]  # no TLS at all
        await time.pass_until_done(*ended)
        assert [each.result() for each in ended] == [b""] * 5
        async with Raw.to(victim.address) as raw:  # TLS, then a byte now and then
            hello = b"".join(frames.pack_frame(FrameType.HELLO, 0, codec.encode(hello_of(member))))
            ended_slow = asyncio.ensure_future(raw.hung_up())
            for byte in hello:
                if ended_slow.done():
                    break
                raw.writer.write(bytes([byte]))
                time.advance(1)
                await asyncio.sleep(0.001)
            assert ended_slow.done()
        for _, other in silent:
            other.close()
            with contextlib.suppress(OSError):
                await other.wait_closed()
        await still_well(victim, member)


async def test_old_tls_is_not_spoken(tmp_path: Path) -> None:
    async with victim_and_member(tmp_path) as (victim, _):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", victim.peers.port, ssl=context)


async def test_an_island_of_another_archipelago_is_told_so(tmp_path: Path) -> None:
    async with archipelago(tmp_path / "x", 1) as (here,), archipelago(tmp_path / "y", 1) as (there,):
        there.knows(here)
        there.peers.connect_soon()
        async with asyncio.timeout(60):
            while here.id not in there.peers._last_error:
                await asyncio.sleep(0.01)
        assert "different archipelagos" in there.peers._last_error[here.id]
        assert here.peers.links() == there.peers.links() == []


async def test_an_uninvited_island_without_network_is_refused(tmp_path: Path) -> None:
    node = Node(tmp_path / "a", "alone")
    other = Node(tmp_path / "b", "founder")
    async with node.running(), other.running():
        await admit(other)
        other.knows(node)
        async with asyncio.timeout(60):
            while node.id not in other.peers._last_error:
                await asyncio.sleep(0.01)
        assert "does not belong to an archipelago" in other.peers._last_error[node.id]
