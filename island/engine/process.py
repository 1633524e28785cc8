"""The processes of one session or batch: start, frames, log and end.

Python and its JVM run under a supervisor in their own process group. Their environment is built
from a list of allowed variables, so it has no secret of the engine.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import site
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from island.engine import supervisor
from island.engine.protocol import MAX_FRAME, FromChild, frame, from_child
from island.errors import EngineFailed
from island.kernel.interpreter import import_path, module_command
from island.livy.rest import KEPT_LOG_LINES, livy_log_lines
from island.private_files import outer_umask

MAX_LINE: Final = 4_000
CHUNK: Final = 65_536
FLOOD_PAUSE_S: Final = 0.005
"""Pause in seconds after a full chunk of log output, so that other sessions are served during a flood of output."""
END_S: Final = 15.0
PASSED: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")


class LogTail:
    """The last lines of a stream of bytes, each cut at `MAX_LINE` characters."""

    def __init__(self, keep: int = KEPT_LOG_LINES) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=keep)
        self._partial = b""

    def feed(self, data: bytes) -> None:
        """Add bytes of the stream."""
        *whole, self._partial = (self._partial + data).split(b"\n")
        # A line without an end must not grow without limit.
        self._partial = self._partial[: 4 * MAX_LINE]
        keep = self._lines.maxlen or 0
        self._lines.extend(self._text(line) for line in whole[-keep:])

    def add(self, line: str) -> None:
        """Add a line that is not from the stream."""
        self._lines.append(line[:MAX_LINE])

    @staticmethod
    def _text(line: bytes) -> str:
        text = line[: 4 * MAX_LINE].decode("utf-8", "replace").rstrip("\r")
        return text if len(text) <= MAX_LINE else text[:MAX_LINE] + " ... (cut)"

    def __iter__(self) -> Iterator[str]:
        yield from self._lines
        if self._partial:
            yield self._text(self._partial)


class ProcessLog:
    """The output of a session's or batch's processes. Notes of the engine are added to the error stream."""

    def __init__(self) -> None:
        self.out, self.err = LogTail(), LogTail()

    def note(self, text: str) -> None:
        """Add a note of the engine, line by line."""
        for line in text.splitlines():
            self.err.add(f"island: {line}")

    def lines(self) -> list[str]:
        """All lines that are kept, with Livy's headings."""
        return livy_log_lines(self.out, self.err)

    def short(self, lines: int) -> list[str]:
        """The last `lines` lines of each stream, with Livy's headings."""
        return livy_log_lines(list(self.out)[-lines:], list(self.err)[-lines:])


def environment(scratch: Path, java_home: str, passed: Mapping[str, str], also: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment of a session: the variables `PASSED` and `also` of `passed`, and fixed values."""
    env = {name: passed[name] for name in (*PASSED, *also) if name in passed}
    env.setdefault("PATH", os.defpath)
    return env | {
        "HOME": str(scratch),
        "TMPDIR": str(scratch / "tmp"),
        "TZ": "UTC",
        "PYTHONUTF8": "1",
        "PYTHONUSERBASE": passed.get("PYTHONUSERBASE") or site.getuserbase(),
        "PYTHONPATH": import_path(passed),
        "JAVA_HOME": java_home,
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_HOSTNAME": "localhost",
    }


class JobProcess:
    """The supervisor of a session or batch, with its processes. Call `start`, read all `frames`, then `wait`."""

    def __init__(self, child: asyncio.subprocess.Process, incoming: int, outgoing: int, log: ProcessLog) -> None:
        self._child = child
        self._incoming, self._outgoing = incoming, outgoing
        self._log = log
        self._writer: asyncio.WriteTransport | None = None

    @property
    def pid(self) -> int:
        """The process id of the supervisor."""
        return self._child.pid

    @classmethod
    async def start(
        cls, module: str, scratch: Path, env: Mapping[str, str], log: ProcessLog, *first: Any
    ) -> JobProcess:
        """Start a module in the folder `scratch` under a supervisor, and send it the frames `first`."""
        child_in, to_child = os.pipe()
        from_child_fd, child_out = os.pipe()
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                supervisor.__file__,
                *(str(child_in), str(child_out), "--", *module_command(module, str(child_in), str(child_out))),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(child_in, child_out),
                cwd=scratch,
                env=env,
                umask=outer_umask(),  # files that a session writes outside have the usual modes of the account
                start_new_session=True,
            )
        except OSError:
            os.close(to_child)
            os.close(from_child_fd)
            raise
        finally:
            os.close(child_in)
            os.close(child_out)
        process = cls(child, from_child_fd, to_child, log)
        loop = asyncio.get_running_loop()
        writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(to_child, "wb", buffering=0))
        process._writer = writer
        for message in first:
            process.send(message)
        return process

    def send(self, message: Any) -> None:
        """Send a frame. It is dropped if the process has ended."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    async def frames(self) -> AsyncIterator[FromChild]:
        """The frames from the process until it closes the pipe. Raises `EngineFailed` for an invalid frame."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._incoming, "rb", buffering=0)
        )
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4), "big")
                if size > MAX_FRAME:
                    raise EngineFailed(f"the session's process sent a frame of {size} bytes; the limit is {MAX_FRAME}")
                try:
                    message = from_child(await reader.readexactly(size))
                except (ValueError, RecursionError) as error:  # user code can make the process send anything
                    raise EngineFailed(f"the session's process sent an invalid frame: {error}") from error
                yield message
        except asyncio.IncompleteReadError:
            return
        finally:
            transport.close()

    async def keep_log(self) -> None:
        """Read both output streams until they end."""
        assert self._child.stdout is not None and self._child.stderr is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._drain(self._child.stdout, self._log.out))
            group.create_task(self._drain(self._child.stderr, self._log.err))

    @staticmethod
    async def _drain(stream: asyncio.StreamReader, tail: LogTail) -> None:
        while data := await stream.read(CHUNK):
            tail.feed(data)
            if len(data) == CHUNK:
                await asyncio.sleep(FLOOD_PAUSE_S)

    def kill(self) -> None:
        """Have the supervisor kill all processes."""
        if self._child.stdin is not None and not self._child.stdin.is_closing():
            self._child.stdin.close()

    async def wait(self) -> int:
        """Wait until all processes have ended, and return the exit code (128 + signal number after a signal)."""
        try:
            code = await self._child.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
        return 128 - code if code < 0 else code

    async def end(self) -> None:
        """Kill all processes and wait. A supervisor that does not end in time is killed with its group."""
        self.kill()
        try:
            async with asyncio.timeout(END_S):
                await self._child.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            await self._child.wait()
        finally:
            # A process that is still alive ends when this pipe is closed.
            if self._writer is not None:
                self._writer.close()
