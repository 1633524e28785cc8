"""`island init`: create a home folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from island import config
from island.cli import base
from island.errors import BadInput, Conflict
from island.home import Home
from island.private_files import write_secret


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(init)


def init(
    home: Annotated[
        Path, typer.Argument(metavar="HOME", help="Home folder to create. If it exists, it must be empty.")
    ],
    name: Annotated[str, typer.Option(help="Name of the island.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT of the user port. Loopback only.")] = "127.0.0.1:8990",
    peer_listen: Annotated[str, typer.Option(help='HOST:PORT of the peer port; "" disables it.')] = "127.0.0.1:8991",
    advertise: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT", help="Address at which others reach the peer port, if it differs. May be repeated."
        ),
    ] = None,
    livy_url: Annotated[
        str, typer.Option(metavar="URL", help="The site's own Livy. Without it the island runs an engine of its own.")
    ] = "",
    archipelago: Annotated[
        str, typer.Option(help="Label of the archipelago, if this island founds one.")
    ] = "archipelago",
) -> None:
    """Create a home folder with island.toml, the key and the two tokens."""
    from island.kernel.ids import check_name

    target = Home(home.expanduser().absolute())
    if target.exists():
        raise Conflict(
            f"{target.path} is already the home folder of an island", hint="Choose another folder; nothing was changed."
        )
    if not target.is_free():
        raise Conflict(f"{target.path} exists and is not an empty folder", hint="Choose another; nothing was changed.")
    if not archipelago or len(archipelago) > 64 or not archipelago.isprintable():
        raise BadInput(
            "the label of the archipelago is empty, too long or not printable",
            hint="Use 1 to 64 printable characters with --archipelago.",
        )
    values: dict[str, dict[str, Any]] = {
        "island": {"name": check_name(name, "island name"), "archipelago": archipelago},
        "listen": {"user": listen, "peer": peer_listen, "advertise": advertise or []},
        "livy": {"url": livy_url},
    }
    text = config.render(values)
    config.parse(values, "init")
    _write(target, text)
    base.say(f"created island '{name}' in {target.path}; start it with: island run --home {target.path}")


def _write(target: Home, text: str) -> None:
    from island.kernel.ports import SystemRng
    from island.trust.keys import Identity
    from island.trust.users import create_tokens

    try:
        target.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.path.chmod(0o700)
        rng = SystemRng()
        Identity.generate(rng).save(target.key)
        create_tokens(target.path, rng)
        write_secret(target.toml, text.encode("utf-8"))
    except OSError as error:
        raise BadInput(
            f"{target.path} cannot be written: {error.strerror or error}", hint="Choose another folder."
        ) from error
