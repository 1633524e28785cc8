"""The program `island engine`: arguments, folder, port and shutdown.

It prints one line of JSON when it is ready, `{"url": ..., "instance": ..., "pid": ...}`. It ends
on SIGINT, on SIGTERM, and with `--parent-pipe` when its standard input is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import functools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from island.engine.class_archive import ClassArchive, archive_folder
from island.engine.jvm import find_java
from island.engine.lifecycle import EngineContext
from island.engine.limits import EngineLimits
from island.engine.rest_api import EngineApi
from island.engine.service import EngineService
from island.engine.spark import spark_home
from island.engine.store import EngineStore
from island.engine.supervisor import die_with_parent
from island.errors import ConfigError, EngineFailed, IslandError
from island.kernel import descriptors, telemetry
from island.kernel.terminal import escaped
from island.livy.http_connections import HttpConnections, HttpLimits

TOKEN_VARIABLE: Final = "ISLAND_ENGINE_TOKEN"
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

log = structlog.get_logger("island.engine")


def run_engine(
    host: str = "127.0.0.1",
    port: int = 0,
    directory: Path | str = "engine",
    *,
    token: str = "",
    token_file: Path | str | None = None,
    limits: EngineLimits | None = None,
    archives: Path | None = None,
    parent_pipe: bool = False,
) -> int:
    """Run an engine until it is stopped. Returns the exit code.

    Every request must have the token. It is `token`, or else read from `token_file`, or else the
    value of the variable ISLAND_ENGINE_TOKEN, or else generated and written to DIRECTORY/token
    with mode 0600. `limits` defaults to `EngineLimits()`. `archives` is the folder for class-data
    archives; None for none. Raises `IslandError` if the engine cannot start.
    """
    if host not in LOOPBACK:
        raise ConfigError(
            f"the engine cannot listen on {host}; it listens on loopback addresses only",
            hint="Use 127.0.0.1. Remote clients connect through an island.",
        )
    folder = Path(directory).expanduser().absolute()
    with _locked(folder):
        secret = _token(token, token_file, folder)
        java, spark = find_java(os.environ), spark_home()
        archive = None if archives is None else ClassArchive(archives, java, Path(spark))
        if parent_pipe:
            die_with_parent(signal.SIGTERM)
        store = EngineStore(folder / "engine.db")
        try:
            listening = _bound(host, port)
            limits = limits or EngineLimits()
            place = EngineContext(folder, secrets.token_hex(8), str(java), _environ(), limits, store, archive)
            asyncio.run(_serve(place, listening, secret, parent_pipe))
        finally:
            store.close()
    return 0


async def _serve(place: EngineContext, listening: socket.socket, token: str, parent_pipe: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if parent_pipe:
        await _watch_parent(stop)
    async with asyncio.TaskGroup() as group:
        engine = EngineService(place, group)
        limits = HttpLimits(connections=descriptors.share(descriptors.limit()).user)
        async with serving(EngineApi(engine, token).app(), listening, limits):
            ticker = group.create_task(engine.run())
            maker = group.create_task(_keep_archive(place))
            host, port = listening.getsockname()[:2]
            where = f"[{host}]" if ":" in host else host
            ready = {"url": f"http://{where}:{port}", "instance": place.instance, "pid": os.getpid()}
            print(json.dumps(ready), flush=True)
            await stop.wait()
            log.info("engine.ending")
            await engine.close()
            ticker.cancel()
            maker.cancel()


async def _keep_archive(place: EngineContext) -> None:
    """Make the class-data archive if there is none. Sessions start without it until it is there, and if this fails."""
    if place.archive is None:
        return
    try:
        if await place.archive.make(place.environ):
            place.archive.clean()
    except (OSError, IslandError) as error:
        log.warning(
            "engine.no_class_archive",
            reason=str(error) or type(error).__name__,
            hint="sessions start without it, which takes longer; --class-archives '' turns it off",
        )


@contextlib.asynccontextmanager
async def serving(application: web.Application, listening: socket.socket, limits: HttpLimits) -> AsyncIterator[None]:
    """Answer requests at a listening socket, which is closed at the end; open requests get two seconds."""
    connections = HttpConnections(limits)
    application.middlewares.insert(0, connections.watch)
    runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=2.0)
    await runner.setup()
    try:
        assert runner.server is not None
        accept = functools.partial(connections.accept, runner.server)
        server = await asyncio.get_running_loop().create_server(accept, sock=listening)
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()


def _environ() -> dict[str, str]:
    """The environment for sessions and batches, without the engine's token."""
    return {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}


def prepare(archives: Path | None) -> int:
    """Make the class-data archive now, and return 0. Raises `IslandError`."""
    if archives is None:
        raise ConfigError("--prepare needs a folder for the archive, but --class-archives is empty")
    archive = ClassArchive(archives, find_java(os.environ), Path(spark_home()))
    try:
        asyncio.run(archive.make(_environ()))
    except OSError as error:
        raise EngineFailed(f"the class-data archive could not be written: {error.strerror or error}") from error
    print(archive.find() or "another process is making the archive")
    return 0


def _bound(host: str, port: int) -> socket.socket:
    """The listening socket. Raises `ConfigError` if the port cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"port {port} on {host} cannot be used: {reason}",
            hint="Choose another port with --port; 0 selects a free port.",
        ) from error


async def _watch_parent(stop: asyncio.Event) -> None:
    """Set `stop` when standard input is closed, because the parent process is gone."""

    class Watch(asyncio.Protocol):
        def connection_lost(self, _error: Exception | None) -> None:
            stop.set()

    try:
        await asyncio.get_running_loop().connect_read_pipe(Watch, sys.stdin)
    except ValueError as error:
        raise ConfigError("standard input is not a pipe, which --parent-pipe requires") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create the folder with mode 0700, lock it for this engine, and delete temporary files of an earlier engine."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be used as the engine's folder: {error.strerror or error}",
            hint="Choose another folder with --dir.",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another engine is running in {folder}", hint="Choose another folder with --dir."
            ) from error
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        yield


def _token(token: str, file: Path | str | None, folder: Path) -> str:
    """The token. It is removed from the environment, which child processes inherit."""
    named = os.environ.pop(TOKEN_VARIABLE, "")
    if not token and file is not None:
        try:
            token = Path(file).read_text("utf-8").strip()
        except OSError as error:
            raise ConfigError(f"the token file {file} cannot be read: {error.strerror or error}") from error
        if not token:
            raise ConfigError(f"the token file {file} is empty", hint="Write the token to it, as one line.")
    token = token or named
    if not token:
        token = secrets.token_urlsafe(32)
        path = folder / "token"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(token + "\n")
        print(f"island engine: the token is in {path}", file=sys.stderr)
    if not re.fullmatch(r"[\x21-\x7e]{8,512}", token):
        raise ConfigError("the token must have 8 to 512 printable ASCII characters without spaces")
    return token


def parser() -> argparse.ArgumentParser:
    """The argument parser of `python -m island.engine`."""
    base = EngineLimits()
    p = argparse.ArgumentParser(prog="island engine", description="A Livy-compatible Spark engine on this machine.")
    p.add_argument("--host", default="127.0.0.1", help="loopback address to listen on (default %(default)s)")
    p.add_argument("--port", type=int, default=8998, help="port; 0 selects a free port (default %(default)s)")
    p.add_argument(
        "--dir", type=Path, default=Path("~/.island/engine"), help="folder of the engine (default %(default)s)"
    )
    p.add_argument("--token-file", type=Path, help=f"file with the token, instead of {TOKEN_VARIABLE} or a new token")
    p.add_argument("--allow-files", type=Path, action="append", default=[], help="folder whose files clients may use")
    p.add_argument("--pass-env", action="append", default=[], help="environment variable to pass to sessions")
    p.add_argument(
        "--java-option",
        action="append",
        default=[],
        help="option for Java, for example -XX:+UseG1GC",
    )
    p.add_argument(
        "--class-archives",
        help="folder for class-data archives (160 MB each), with which sessions start in half the time; an archive is "
        "made once, while the processor is idle; '' for none (default: island in this account's cache folder)",
    )
    p.add_argument("--prepare", action="store_true", help="make the class-data archive and exit")
    p.add_argument("--parent-pipe", action="store_true", help="exit when standard input is closed")
    for name, kind, text in (
        ("max_sessions", int, "maximum number of live sessions"),
        ("max_batches", int, "maximum number of live batches"),
        ("max_queued", int, "maximum number of waiting statements in a session"),
        ("max_output", int, "maximum number of characters of a statement's output"),
        ("memory", str, "default driver memory of a session"),
        ("max_memory", str, "maximum driver memory of a session"),
        ("cores", int, "number of cores of a session"),
        ("idle_timeout_s", float, "seconds after which an idle session ends; 0 for never"),
        ("start_timeout_s", float, "maximum seconds for the start of Spark"),
        ("retain_s", float, "seconds for which an ended session remains listed"),
    ):
        flag = "--" + name.removesuffix("_s").replace("_", "-")
        p.add_argument(flag, dest=name, type=kind, default=getattr(base, name), help=f"{text} (default %(default)s)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run an engine as a program. Exit codes: 0 regular end, 1 error, 2 wrong usage."""
    args = vars(parser().parse_args(argv))
    telemetry.configure()
    settings = {name: args[name] for name in EngineLimits.__struct_fields__ if name in args}
    for name, argument in (("allow_files", "allow_files"), ("pass_env", "pass_env"), ("java_options", "java_option")):
        settings[name] = tuple(args[argument])
    archives = None
    if args["class_archives"] is None:
        archives = archive_folder(os.environ, args["dir"].expanduser().absolute())
    elif args["class_archives"]:
        archives = Path(args["class_archives"]).expanduser().absolute()
    try:
        if args["prepare"]:
            return prepare(archives)
        return run_engine(
            args["host"],
            args["port"],
            args["dir"],
            token_file=args["token_file"],
            limits=EngineLimits(**settings),
            archives=archives,
            parent_pipe=args["parent_pipe"],
        )
    except IslandError as error:
        print(escaped(f"island engine: {error}", lines=True), file=sys.stderr)
        if args["parent_pipe"]:
            print(json.dumps({"problem": error.line}), flush=True)  # instead of the line with the address
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
