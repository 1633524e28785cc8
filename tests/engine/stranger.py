"""Attempts of another account of this machine to use the ports and files of a Spark session.

Run as a file, as root: `python -I stranger.py UID GID` with a JSON object on standard input. It first changes
to that account, then makes the attempts, and prints the result of each; an empty text is a refusal.
The messages are bytes of Spark's own transport protocol, so neither Spark nor a secret is needed.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - while files can still be read: the account may not be able to
import json
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

CHUNK_REQUEST, CHUNK, RPC_REQUEST, RPC_ANSWER, STREAM_REQUEST, STREAM = 0, 1, 3, 4, 6, 7
OPEN_BLOCKS, UPLOAD_BLOCK = b"\x00", b"\x01"
PATIENCE_S = 60.0
SILENCE_S = 3.0


def text(value: str) -> bytes:
    """A string in the encoding of Spark's messages."""
    return blob(value.encode())


def blob(value: bytes) -> bytes:
    """Bytes in the encoding of Spark's messages."""
    return struct.pack(">i", len(value)) + value


def java_text(value: str) -> bytes:
    """A string in the encoding of Java's `writeUTF`."""
    return struct.pack(">H", len(value)) + value.encode()


def request(kind: int, head: bytes, body: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">qb", 9 + len(head) + len(body), kind) + head + body


def rpc(body: bytes) -> bytes:
    """A request that requires an answer."""
    return request(RPC_REQUEST, struct.pack(">qi", 1, len(body)), body)


def connected(port: int) -> socket.socket:
    """A connection to a port of the loopback interface."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE_S)


def exactly(connection: socket.socket, count: int) -> bytes:
    """Read `count` bytes of a connection; fewer if it ends before."""
    data = b""
    while len(data) < count:
        try:
            part = connection.recv(count - len(data))
        except ConnectionError:
            break
        if not part:
            break
        data += part
    return data


def answer(connection: socket.socket, message: bytes) -> tuple[int, bytes]:
    """Type and content of the frame that answers a frame; (-1, b"") if the connection is closed instead."""
    connection.sendall(message)
    size = exactly(connection, 8)
    frame = exactly(connection, struct.unpack(">q", size)[0] - 8) if len(size) == 8 else b""
    return (frame[0], frame[1:]) if frame else (-1, b"")


def ask_an_endpoint(port: int, task: dict[str, Any]) -> str:
    """Ask whether an endpoint of the driver exists. The driver decodes the message as Java objects to answer it."""
    address = b"\x01" + java_text("localhost") + struct.pack(">i", port)
    body = b"\x00" + address + java_text("endpoint-verifier") + bytes.fromhex(task["check"])
    with connected(port) as connection:
        kind, got = answer(connection, rpc(body))
    return repr(got) if kind == RPC_ANSWER else ""


def fetch_a_jar(port: int, task: dict[str, Any]) -> str:
    """Fetch a jar of the session."""
    with connected(port) as connection:
        kind, got = answer(connection, request(STREAM_REQUEST, text(f"/jars/{task['jar']}")))
    return repr(got) if kind == STREAM else ""


def read_a_block(port: int, task: dict[str, Any]) -> str:
    """Fetch a block with the session's data."""
    wanted = OPEN_BLOCKS + text("app") + text("1") + struct.pack(">i", 1) + text(task["block"])
    with connected(port) as connection:
        kind, got = answer(connection, rpc(wanted))
        if kind != RPC_ANSWER:
            return ""
        # Request id, length, and the answer: its type, the id of the stream, the number of chunks.
        stream = struct.unpack_from(">q", got, 13)[0]
        kind, got = answer(connection, request(CHUNK_REQUEST, struct.pack(">qi", stream, 0)))
    return repr(got) if kind == CHUNK else ""


def upload_a_block(port: int, task: dict[str, Any]) -> str:
    """Upload a block under a name from which the session's tasks load code."""
    level, data = blob(bytes.fromhex(task["level"])), blob(b"a stranger's")
    with connected(port) as connection:
        kind, got = answer(
            connection, rpc(UPLOAD_BLOCK + text("app") + text("1") + text(task["uploaded"]) + level + data)
        )
    return f"taken {got!r}" if kind == RPC_ANSWER else ""


def call_java(port: int, _task: dict[str, Any]) -> str:
    """Call a Java method through py4j."""
    with connected(port) as connection:
        connection.sendall(b"c\nz:java.lang.System\ngetProperty\nsuser.name\ne\n")
        got = exactly(connection, 2)
    return repr(got) if got == b"!y" else ""


def send_accumulators(port: int, _task: dict[str, Any]) -> str:
    """Send an update without accumulators, which is acknowledged by one byte."""
    with connected(port) as connection:
        connection.settimeout(SILENCE_S)
        connection.sendall(bytes(4096))
        try:
            got = exactly(connection, 1)
        except TimeoutError:
            return ""  # it serves only one connection at a time, that of Java
    return repr(got) if got else ""


def start_a_worker(port: int, _task: dict[str, Any]) -> str:
    """Connect to a Python worker with a wrong secret."""
    with connected(port) as connection:
        connection.sendall(text("a guess"))
        got = exactly(connection, 6)
    return repr(got) if got.endswith(b"ok") else ""


def list_sessions(port: int, _task: dict[str, Any]) -> str:
    """Call the engine's REST API without a token."""
    with connected(port) as connection:
        connection.sendall(b"GET /sessions HTTP/1.0\r\n\r\n")
        got = exactly(connection, 12)
    return "" if got.endswith(b" 401") else repr(got)


ATTEMPTS: dict[str, tuple[Callable[[int, dict[str, Any]], str], ...]] = {
    "rpc": (ask_an_endpoint, fetch_a_jar),
    "blocks": (read_a_block, upload_a_block),
    "gateway": (call_java,),
    "accumulators": (send_accumulators,),
    "workers": (start_a_worker,),
    "engine": (list_sessions,),
}


def is_readable(path: str) -> bool:
    """Whether this account can list a folder, or read or change a file."""
    try:
        if os.path.isdir(path):
            os.listdir(path)
        else:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return os.access(path, os.W_OK)
    return True


def main(argv: list[str]) -> None:
    """Change to the account, make all attempts, and print the results."""
    task = json.load(sys.stdin)
    os.setgroups([])
    os.setgid(int(argv[2]))
    os.setuid(int(argv[1]))
    got = {
        f"{name}: {attempt.__name__}": attempt(port, task)
        for name, port in task["ports"].items()
        for attempt in ATTEMPTS[name]
    }
    print(json.dumps({"got": got, "readable": [path for path in task["paths"] if is_readable(path)]}))


if __name__ == "__main__":
    main(sys.argv)
