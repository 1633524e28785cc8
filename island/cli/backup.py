"""`island backup` and `island restore`: a home folder in one file, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from island.cli import base, interrupts
from island.home import Home

if TYPE_CHECKING:
    from island.backup.messages import BackupManifest


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("backup")(backup)
    app.command("restore")(restore)


def backup(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File to write. It is compressed if its name ends with .gz or .tgz.")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every byte of an existing backup instead; writes nothing.")
    ] = False,
    without_streams: Annotated[
        bool,
        typer.Option(
            "--without-streams",
            help="Leave out the rows that subscriptions have received (HOME/streams), which can be large.",
        ),
    ] = False,
) -> None:
    """Write the identity, configuration and databases of this island to one file, also while its daemon runs.

    The file contains the island's key and tokens: keep it secret. It does not contain published data, which
    stay where they are, nor replicas of other islands' datasets, which can be fetched again.
    """
    from island.backup import restoring, saving
    from island.kernel.ports import SystemClock

    target = file.expanduser().absolute()
    if verify:
        with interrupts.undoable(), base.progress_bar(f"checking {file}") as bar:
            manifest = restoring.verify(target, _feed(bar))
        _report(manifest, f"{file} is complete and unchanged: ")
        return
    now = SystemClock().wall()
    with interrupts.undoable(), base.progress_bar(f"writing {file}") as bar:
        saved = saving.save(base.home(), target, now=now, streams=not without_streams, progress=_feed(bar))
    _report(saved.manifest, f"wrote {file} ({base.format_size(saved.size)}): ")
    for warning in saved.warnings:
        base.say(f"warning: {warning}")
    base.say("It contains the key and the tokens of the island: keep it secret, and on another disk.")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Backup that `island backup` wrote.")],
    home: Annotated[
        Path, typer.Argument(metavar="HOME", help="Home folder to create. If it exists, it must be empty.")
    ],
) -> None:
    """Create a home folder from a backup. The whole backup is checked before anything is written.

    The new home folder has the key of the island that was backed up, so it is the same island to all others.
    """
    from island.backup import restoring
    from island.kernel.ports import SystemClock

    target = Home(home.expanduser().absolute())
    with interrupts.undoable(), base.progress_bar(f"restoring {file}") as bar:
        manifest = restoring.restore(
            file.expanduser().absolute(), target, now=SystemClock().wall(), progress=_feed(bar)
        )
    base.say(
        f"restored {_described(manifest)} to {target.path}; start it with: island run --home {target.path}\n"
        "It is the same island to all others. Never start another copy: two daemons with one key fork the island's "
        "log, and other islands then accept nothing more from this key.\n"
        "What happened after the backup is lost here. The island signs nothing until another island has returned the "
        "newer part of its log. If `island status` then reports missing rows of the journal, run: "
        f'island journal --acknowledge "restored the backup of {manifest.made}"'
    )
    if not manifest.streams:
        base.say(
            "The rows of subscriptions are not in this backup. Before the start, copy the folder 'streams' to "
            f"{target.path}."
        )


def _feed(bar: Callable[[dict[str, Any]], None]) -> Callable[[int, int], None]:
    return lambda done, total: bar({"done": done, "total": total})


def _described(manifest: BackupManifest) -> str:
    details = f"key {manifest.key[:10]}, backup of {manifest.made}, version {manifest.version}"
    return f"the island '{manifest.island}' ({details})"


def _report(manifest: BackupManifest, text: str) -> None:
    from island.backup.core import total_bytes

    size = base.format_size(total_bytes(manifest))
    base.say(f"{text}{_described(manifest)}, {len(manifest.files)} files, {size}")
