"""The embedded engine as a child process of the daemon: start, supervision, restart, end.

The standard input of the child is the read end of a pipe. The child ends itself when the pipe
is closed, which also happens when the daemon is killed. A new token is generated at each start
of the daemon and passed in the environment, where the process list does not show it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Final

import structlog

from island.config import Config
from island.errors import EngineFailed
from island.kernel.interpreter import SAFE_FOLDER, import_path, module_command
from island.kernel.loops import Tasks
from island.kernel.ports import Rng

log = structlog.get_logger("island")

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 12.0


class EmbeddedEngine:
    """The child process `island engine`. `url` and `token` are valid while `running` is true.

    Without the extra `spark` there is no engine: `problem` has the reason, and jobs run at
    other islands.
    """

    def __init__(self, home: Path, config: Config, rng: Rng) -> None:
        self._folder = home / "engine"
        self._config, self._rng = config, rng
        self.token = base64.urlsafe_b64encode(rng.bytes(24)).decode().rstrip("=")
        self.url = ""
        self.problem = "the engine is starting"
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def wanted(self) -> bool:
        """Whether the configuration asks for the embedded engine."""
        return self._config.livy.embedded and not self._config.livy.url

    @property
    def installed(self) -> bool:
        """Whether PySpark is installed."""
        return importlib.util.find_spec("pyspark") is not None

    @property
    def running(self) -> bool:
        """Whether the engine answers at `url`."""
        return bool(self.url) and self._process is not None and self._process.returncode is None

    async def start(self, tasks: Tasks) -> None:
        """Start the engine in the background, if the configuration asks for it."""
        if not self.wanted:
            self.problem = ""
            return
        if not self.installed:
            # An island with other engines needs no Spark.
            missing = (
                "Spark is not installed: install the extra `spark` (in a clone: pip install '.[spark]'),"
                " or set [livy] url"
            )
            self.problem = "" if self._config.engine else missing
            log.warning("engine.not_installed")
            return
        tasks.forever("engine", self._run_once, rng=self._rng)

    async def _run_once(self) -> None:
        """Run one engine process until it ends. Raises `EngineFailed`, and the loop starts the next one."""
        livy = self._config.livy
        arguments = [
            *("--host", "127.0.0.1", "--port", str(self._port), "--dir", str(self._folder), "--parent-pipe"),
            *("--max-sessions", str(livy.max_sessions), "--max-batches", str(livy.max_sessions)),
            *("--memory", livy.driver_memory, "--idle-timeout", str(livy.idle_timeout)),
            *("--max-queued", str(self._config.jobs.max_statements)),
        ]
        # The file of a batch is sent with its job and written to this folder. `jobs.allow_files` is for the gateway.
        arguments += ["--allow-files", str(self._folder.parent / "jobs")]
        arguments += [f"--java-option={option}" for option in livy.java_options]
        if not livy.class_archive:
            arguments.append("--class-archives=")
        environment = {k: v for k, v in os.environ.items() if k != "ISLAND_TOKEN"}
        process = await asyncio.create_subprocess_exec(
            *module_command("island.engine", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**environment, "PYTHONPATH": import_path(os.environ), "ISLAND_ENGINE_TOKEN": self.token},
            cwd=SAFE_FOLDER,
            start_new_session=True,
        )
        self._process = process
        try:
            await self._ready(process)
            await process.wait()
        finally:
            self.url = ""
            await self._end(process)
        if not self._stopping:
            self.problem = f"the engine exited with status {process.returncode}; it will be restarted"
            raise EngineFailed(self.problem)
        await asyncio.Event().wait()  # until the daemon's task group is cancelled

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await process.stdout.readline()
            answer = json.loads(line)
            if "url" not in answer:
                raise self._not_started(f"the engine did not start: {answer['problem']}")
            self._port = int(str(answer["url"]).rpartition(":")[2])
        except (TimeoutError, ValueError, KeyError, TypeError) as error:
            text = "the engine did not start; the lines of the log before this one show the cause"
            raise self._not_started(text) from error
        self.url, self.problem = answer["url"], ""
        log.info("engine.ready", url=self.url, instance=answer.get("instance"), pid=process.pid)

    def _not_started(self, problem: str) -> EngineFailed:
        self.problem = problem
        self._port = 0  # another program may have taken the port since the engine ended
        return EngineFailed(problem)

    async def stop(self) -> None:
        """Stop the engine with its sessions and batches, and wait for the process to exit."""
        self._stopping = True
        if self._process is not None:
            await self._end(self._process)

    @staticmethod
    async def _end(process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        assert process.stdin is not None
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
