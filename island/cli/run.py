"""`island run` and `island engine`: the two commands that run until they are stopped."""

from __future__ import annotations

import typer

from island.cli import base


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("run")(run)
    # The engine has its own argument parser, which `python -m island.engine` also uses; it prints the --help text.
    raw = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command("engine", context_settings=raw)(engine)


def run() -> None:
    """Run the daemon in the foreground. SIGINT or SIGTERM stops it."""
    home = base.home()
    config = home.config()  # an error in it is reported before the daemon is imported, which takes a second
    home.check_account()

    from island.daemon import main
    from island.kernel import telemetry

    telemetry.configure(config.log.level, config.log.format)
    main(home, config)


def engine(context: typer.Context) -> None:
    """Run the Livy-compatible Spark engine without an island; `island engine --help` lists its options."""
    from island.engine.main import main

    raise typer.Exit(main(context.args))
