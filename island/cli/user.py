"""`island user`: the people who use this island, and their tokens."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from island.cli import base
from island.client import quote

app = typer.Typer(help="Users of this island: each has a token of her own.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the user.")]


class UserRole(StrEnum):
    """The two roles of users."""

    user = "user"
    administrator = "administrator"


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="user")


@app.command("add")
def add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the new user: lower-case letters, digits, '.', '_' and '-'.")
    ],
    role: Annotated[
        UserRole, typer.Option(help="An administrator can change the island and sees the jobs of all users.")
    ] = UserRole.user,
    expires: Annotated[
        float, typer.Option(metavar="DAYS", min=0, max=3660, help="Days until the token expires; 0: never.")
    ] = 0.0,
    as_json: base.Json = False,
) -> None:
    """Add a user and print her token. It is shown only now, because the island stores only its hash.

    Give it to the person in a way in which you would send a password.
    """
    made = base.api().post("/api/v1/users", {"name": name, "role": role.value, "valid_s": expires * 86400})
    _show_token(made, as_json)


@app.command("ls")
def ls(as_json: base.Json = False) -> None:
    """List the users of this island; with a user's token, only that user."""
    columns = ("name", "role", "state", "created", "issued", "expires", "revoked", "max_live")
    found = base.api().get("/api/v1/users")
    base.show_rows(found, columns, as_json, empty="no users; `island user add NAME` adds one")


@app.command("show")
def show(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Name of the user. Default: the one whose token is used.")
    ] = "",
    as_json: base.Json = False,
) -> None:
    """Show a user, or without a name whose token this is."""
    path = f"/api/v1/users/{quote(name)}" if name else "/api/v1/user"
    base.show_pairs(base.api().get(path), as_json)


@app.command("rotate")
def rotate(
    name: Name,
    expires: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS",
            min=0,
            max=3660,
            help="Days until the new token expires; 0: never. Default: when the old one would. Administrators only.",
        ),
    ] = None,
    as_json: base.Json = False,
) -> None:
    """Replace the token of a user and print the new one. The old one is invalid at once.

    A user may replace her own token. A user whose token was revoked is active again.
    """
    body = {} if expires is None else {"valid_s": expires * 86400}
    _show_token(base.api().post(f"/api/v1/users/{quote(name)}/rotate", body), as_json)


@app.command("revoke")
def revoke(name: Name) -> None:
    """Revoke the token of a user, at once. Her sessions and batches continue, and her results are kept.

    A user may revoke her own token. `island user rotate` makes a new one.
    """
    gone = base.api().delete(f"/api/v1/users/{quote(name)}")
    base.say(f"the token of {gone['name']} is not accepted any more; `island job ls` lists what still runs")


def _show_token(made: dict[str, Any], as_json: bool) -> None:
    until = f"It expires at {made['expires']}." if made["expires"] else "It does not expire."
    base.say(f"Token of {made['name']} ({made['role']}), which is not shown again. {until}")
    if as_json:
        base.show_json(made)
    else:
        base.print_line(made["token"])
