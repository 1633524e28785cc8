"""`island run` and `island engine`: the two programs that stay."""

from __future__ import annotations

import typer

from island.cli import base
from island.kernel import telemetry


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("run")(run)


def run() -> None:
    """Run the daemon in the foreground until SIGINT or SIGTERM."""
    from island.daemon import main

    home = base.home()
    config = home.config()
    telemetry.configure(config.log.level, config.log.format)
    main(home, config)
