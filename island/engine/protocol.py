"""The protocol between the engine and the process of a session or batch, over two pipes.

A frame is a length of four bytes, big-endian, followed by a JSON object with the key `t`. The
engine validates every frame that it reads, because user code runs in the same process as the sender.
"""

from __future__ import annotations

import os
from typing import Any, Final

import msgspec

from island.livy.messages import Output

MAX_FRAME: Final = 64 * 1024 * 1024
EXIT_STARTING: Final = 70
"""Exit code of a session or batch in which Spark did not start."""
EXIT_JAVA: Final = 71
"""Exit code of a session in which the JVM ended."""


class StartChild(msgspec.Struct, frozen=True, tag="start", tag_field="t"):
    """First frame to a child: all its settings. They are not passed on a command line or in the environment."""

    scratch: str
    java_home: str
    java_options: list[str]
    memory: str
    cores: int
    conf: dict[str, str]
    views: dict[str, str]
    aliases: dict[str, str]
    py_files: list[str]
    max_output: int
    rows: int


class ExecuteStatement(msgspec.Struct, frozen=True, tag="run", tag_field="t"):
    """Run a statement. `kind` is pyspark or sql."""

    id: int
    code: str
    kind: str


class CancelStatement(msgspec.Struct, frozen=True, tag="cancel", tag_field="t"):
    """Interrupt this statement if it is running."""

    id: int


class CompleteCode(msgspec.Struct, frozen=True, tag="complete", tag_field="t"):
    """Request for the candidates that may continue `code`. `id` numbers the requests of a session."""

    id: int
    code: str
    kind: str


class ExecuteScript(msgspec.Struct, frozen=True, tag="script", tag_field="t"):
    """Second frame to a batch: the file and its arguments."""

    file: str
    args: list[str]


class Ready(msgspec.Struct, frozen=True, tag="ready", tag_field="t"):
    """The session is idle: Spark is running and the views of the inputs exist."""


class LogNote(msgspec.Struct, frozen=True, tag="note", tag_field="t"):
    """A note of island for the log of the session or batch."""

    text: str


class StatementDone(msgspec.Struct, frozen=True, tag="done", tag_field="t"):
    """A statement has ended. `output` is None if it was cancelled."""

    id: int
    output: Output | None


class CodeCandidates(msgspec.Struct, frozen=True, tag="candidates", tag_field="t"):
    """Answer to `CompleteCode`."""

    id: int
    names: list[str]


ToChild = StartChild | ExecuteStatement | CancelStatement | CompleteCode | ExecuteScript
FromChild = Ready | LogNote | StatementDone | CodeCandidates

_to_child: msgspec.json.Decoder[ToChild] = msgspec.json.Decoder(ToChild)
_from_child: msgspec.json.Decoder[FromChild] = msgspec.json.Decoder(FromChild)


def frame(message: Any) -> bytes:
    """A message encoded as a frame."""
    body = msgspec.json.encode(message)
    return len(body).to_bytes(4, "big") + body


def from_child(body: bytes) -> FromChild:
    """The message in the body of a frame. Raises `msgspec.DecodeError` if it is invalid."""
    return _from_child.decode(body)


def _read_exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_to_child(fd: int) -> ToChild:
    """The next frame from the engine. Raises `EOFError` at the end of the pipe."""
    return _to_child.decode(_read_exactly(fd, int.from_bytes(_read_exactly(fd, 4), "big")))


def write_all(fd: int, data: bytes) -> None:
    """Write all data, with several writes if the buffer of the pipe is small."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
