"""`island peer`: the islands of the archipelago, and how to join them."""

from __future__ import annotations

import getpass
import itertools
import sys
from typing import Annotated, Any

import typer

from island.cli import base

app = typer.Typer(help="Islands of the archipelago: invite, join, list.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="peer")


@app.command("invite")
def invite(
    uses: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of islands that may join with the invitation.")
    ] = 1,
    hours: Annotated[float, typer.Option(min=0.001, max=8784, help="Hours until the invitation expires.")] = 24.0,
) -> None:
    """Print an invitation. The first invitation founds the archipelago.

    Anyone who has the invitation can join. Send it as you would send a password.
    """
    made = base.api().post("/api/v1/peers/invitations", {"uses": uses, "valid_s": hours * 3600})
    if made["founded"]:
        base.say(
            f"This founded the archipelago. Its recovery key is in {made['recovery_key']}: "
            "move this file to another machine."
        )
    addresses = ", ".join(made["addresses"])
    if made["this_machine_only"]:
        base.say(
            f"The peer port ({addresses}) can be reached from this machine only. To invite other machines, set "
            "listen.peer, and listen.advertise if the public address differs, in island.toml."
        )
    base.say(f"Valid for {uses} {'island' if uses == 1 else 'islands'} and {hours:g} h. Use it with: island peer join")
    base.print_line(made["invitation"])


@app.command("join")
def join(
    invitation: Annotated[
        str,
        typer.Argument(
            metavar="[INVITATION]",
            help="The invitation. Without it, the command prompts for it, or reads it from stdin if stdin is not "
            "a terminal. An argument can be read by other accounts of this machine in the process list.",
        ),
    ] = "-",
) -> None:
    """Join an archipelago, and wait for a session with the island that made the invitation."""
    if invitation == "-":
        word = getpass.getpass("Invitation (not shown): ") if sys.stdin.isatty() else sys.stdin.read(20_000)
    else:
        word = invitation
        base.say(
            "note: other accounts of this machine can see the invitation in the process list; "
            "run `island peer join` without an argument to be prompted for it"
        )
    base.say("connecting to the island that made the invitation ...")
    joined = base.api().post("/api/v1/peers/join", {"invitation": word})
    base.say(f"linked with {joined['island']}; `island peer ls` shows the archipelago")


@app.command("ls")
def ls(as_json: base.Json = False) -> None:
    """List all islands and whether they are up, suspect or down."""
    columns = ("island", "key", "state", "since", "address", "rtt_ms", "dialled", "version")
    found = base.api().get("/api/v1/peers")
    if as_json:
        base.show_json(found)
    else:
        base.show_rows([{**row, "key": row["key"][:10]} for row in found], columns, False)


@app.command("nearby")
def nearby(as_json: base.Json = False) -> None:
    """List the archipelagos that are announced on the local network, which one could ask to join.

    Nobody has proved that an announcement is true. Discovery must be on ([discovery] in island.toml); the exit code
    is 1 if it is off or does not work.
    """
    found = base.api().get("/api/v1/peers/nearby")
    if as_json:
        base.show_json(found)
    elif found["state"] == "off":
        base.say(
            "discovery on the local network is off: set enabled = true under [discovery] in island.toml and restart "
            "the island"
        )
    else:
        _show_nearby(found)
    if found["state"] != "on":
        raise typer.Exit(1)


def _show_nearby(found: dict[str, Any]) -> None:
    if found["problem"]:
        where = "on all interfaces" if found["state"] == "on" else "now"
        base.say(f"discovery does not work {where}: {found['problem']}. The island keeps trying.")
    if found["state"] == "on":
        rows = [
            _archipelago(network, list(islands))
            for network, islands in itertools.groupby(found["islands"], lambda each: str(each["network"]))
        ]
        columns = ("archipelago", "mine", "islands", "announced_as", "addresses")
        base.show_rows(rows, columns, False, empty="no other island is announced on the local network")
        if any(not row["mine"] for row in rows):
            base.say(
                "To join an archipelago, ask an administrator of one of its islands for an invitation, and run: "
                "island peer join"
            )
    if found["note"]:
        base.say(found["note"])


def _archipelago(network: str, islands: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "archipelago": network[:10],
        "mine": any(each["mine"] for each in islands),
        "islands": len(islands),
        "announced_as": [each["island"] or each["key_prefix"] for each in islands],
        "addresses": [address for each in islands for address in each["addresses"]],
    }
