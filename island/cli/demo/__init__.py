"""`island demo`: an archipelago of three islands on this machine, on real data, in numbered acts."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import typer

from island.cli import base
from island.errors import BadInput


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Exit after the last comparison, with 0 if all results agree.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Folder for the islands. Default: a temporary folder that is removed.")
    ] = None,
    alerts: Annotated[
        Path | None, typer.Option("--alerts", help="Folder of ZTF alerts (Avro) to use as the stream.")
    ] = None,
) -> None:
    """Run a demonstration with three islands and real data."""
    from island.cli.demo.acts import play
    from island.cli.demo.data import alert_files

    if folder and folder.exists() and any(folder.iterdir()):
        raise BadInput(f"{folder} is not empty", hint="Use a new or empty folder with --dir.")
    files = alert_files(alerts) if alerts else []
    root = folder.absolute() if folder else Path(tempfile.mkdtemp(prefix="island-demo-"))
    try:
        differences = play(root, files, stay=None if once else _interrupted)
    finally:
        if folder is None:
            shutil.rmtree(root, ignore_errors=True)
    if differences:
        base.say("Results that differ:")
        for line in differences:
            base.say(f"  {line}")
        raise typer.Exit(1)


def _interrupted() -> None:
    """Wait for Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(3600):
        pass
