"""`island run` and `island engine`: the two programs that stay."""

from __future__ import annotations

import typer

from island.cli import base
from island.kernel import telemetry


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("run")(run)
    # The engine has a parser of its own, which also serves `python -m island.engine`; its --help is the one shown.
    raw = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command("engine", context_settings=raw)(engine)


def run() -> None:
    """Run the daemon in the foreground. SIGINT or SIGTERM stops it."""
    from island.daemon import main

    home = base.home()
    config = home.config()
    telemetry.configure(config.log.level, config.log.format)
    main(home, config)


def engine(context: typer.Context) -> None:
    """Run a Livy-compatible Spark engine alone, without an island; `island engine --help` lists its options."""
    from island.engine.main import main

    raise typer.Exit(main(context.args))
