"""The child of `kernel.processes`: `python -P -m island.kernel.process_main MEMORY_BYTES`.

Reads requests from stdin, one at a time, and writes answers to a duplicate of the original stdout.
The child exits when stdin closes, even while it runs a function.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
import os
import queue
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from island.errors import IslandError, known_error
from island.kernel import process_messages
from island.kernel.process_messages import (
    ALIVE,
    BEGUN,
    DONE,
    FAILED,
    HEAD,
    ITEM,
    MAX_TEXT,
    OUT_OF_MEMORY,
    Begun,
    Failure,
    Request,
    decode,
    encode,
    types_of,
)

_monotonic = time.monotonic  # noqa: TID251 - the clock of `kernel.ports` comes with asyncio, which a child does not need
_ALIVE_SECONDS = 1.0
_OPEN_FILES = 256
_OOM_SCORE = 800


def main() -> None:
    """Answer requests until the parent closes stdin or ends."""
    _limit(int(sys.argv[1]))
    answers = os.dup(1)
    os.dup2(2, 1)  # output that a library prints must not get between the answers
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_take, args=(requests,), daemon=True).start()
    channel = _Channel(answers)
    process_messages._report = channel.report
    while True:
        try:
            _answer(decode(requests.get(), Request), channel)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # any other action might need memory


def _limit(memory: int) -> None:
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG: the kernel kills this process when its parent dies, even if it never reads stdin again.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        with contextlib.suppress(OSError):  # if the machine runs out of memory, this process is killed first
            Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), "ascii")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for what, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        _, hard = resource.getrlimit(what)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (allowed, allowed))


def _take(requests: queue.SimpleQueue[bytes]) -> None:
    """Read requests until stdin ends, then exit the process."""
    while len(head := sys.stdin.buffer.read(HEAD.size)) == HEAD.size:
        size, _ = HEAD.unpack(head)
        requests.put(sys.stdin.buffer.read(size))
    os._exit(0)


class _Channel:
    """Writes messages to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._last_sent = 0.0

    def send(self, kind: int, data: bytes = b"") -> None:
        """Write one complete message."""
        rest = memoryview(HEAD.pack(len(data), kind) + data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._last_sent = _monotonic()

    def report(self, kind: int, content: msgspec.Struct | None) -> None:
        """Send the messages of `begin` and `alive`, those of `alive` at most once a second."""
        if kind == BEGUN and isinstance(content, Begun):
            _allow(content.cpu_seconds)
            self.send(BEGUN, encode(content))
        elif _monotonic() - self._last_sent >= _ALIVE_SECONDS:
            self.send(ALIVE)


def _allow(cpu_seconds: float) -> None:
    """Set the limit of processor time to `cpu_seconds` from now; the kernel ends a process that exceeds it."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = max(1, math.ceil(used + cpu_seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _answer(request: Request, channel: _Channel) -> None:
    channel.send(ALIVE)  # the call has begun: if this process dies from now on, the call is not repeated
    _allow(request.cpu_seconds)
    try:
        module, _, name = request.function.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        kinds, _ = types_of(function, emits=request.emits)
        kind: Any = tuple[tuple(kinds)]  # type: ignore[misc]  # a type that is known at run time only
        args = decode(request.arguments, kind)
        if request.emits:
            function(lambda item: channel.send(ITEM, encode(item)), *args)
        else:
            channel.send(ITEM, encode(function(*args)))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the parent raises it where the caller waits
        channel.send(FAILED, encode(_failure(error)))
    else:
        channel.send(DONE)


def _failure(error: Exception) -> Failure:
    if isinstance(error, IslandError):
        # A class that `island.errors` does not define is sent as its nearest base class that it defines.
        kind = next(base.__name__ for base in type(error).__mro__ if known_error(base.__name__) is base)
        return Failure(kind, error.message[:MAX_TEXT], error.hint[:MAX_TEXT], error.code)
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return Failure("OSError", text[:MAX_TEXT], number=error.errno or 0)
    return Failure(type(error).__name__, "".join(traceback.format_exception(error))[-MAX_TEXT:])


if __name__ == "__main__":
    main()
