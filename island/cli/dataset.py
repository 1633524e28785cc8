"""`island dataset`: publish, withdraw, list, search, show, fetch and drop datasets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from island.cli import base, interrupts
from island.errors import BadInput

COLUMNS = ("island", "name", "title", "format", "rows", "bytes", "files", "updated")
app = typer.Typer(help="Datasets of the archipelago: publish, search, show, fetch.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="dataset")


@app.command()
def publish(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A Parquet or Avro file, a folder, or a HATS catalog.")],
    name: Annotated[str, typer.Option(help="Name of the dataset. Publishing an existing name makes a new snapshot.")],
    title: Annotated[str, typer.Option(help="Title, one line.")] = "",
    description: Annotated[str, typer.Option(help="Description.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the data, and the required credit.")] = "",
    ra: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of right ascension, if it is not detected.")
    ] = None,
    dec: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of declination, if it is not detected.")
    ] = None,
    as_json: base.Json = False,
) -> None:
    """Publish files as a dataset. The files are read once and are not moved or copied."""
    body = {
        "path": str(path.expanduser().resolve()),
        "name": name,
        "title": title,
        "description": description,
        "licence": licence,
        "ra": ra,
        "dec": dec,
    }
    with interrupts.undoable(), base.progress_bar(f"publishing {name}") as progress:
        result = base.api(timeout=3600).follow("POST", "/api/v1/datasets", body, progress)
    for warning in result["warnings"]:
        base.say(f"warning: {base.format_cell(warning)}")
    base.say(
        f"published {result['dataset']}: {_count(result['rows'], 'row')} in {_count(result['files'], 'file')}"
        f" ({base.format_size(result['bytes'])}), snapshot {result['snapshot'][:12]}"
    )
    base.say(result["audience"])
    if as_json:
        base.show_json(result)
    else:
        base.print_line(result["dataset"])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


@app.command()
def unpublish(name: Annotated[str, typer.Argument(metavar="NAME", help="A dataset of this island.")]) -> None:
    """Withdraw a dataset of this island. Its files are not deleted."""
    own = name.rpartition("/")[2] if name.count("/") == 1 else name
    if own != name:
        _check_own(name)
    base.api().delete(f"/api/v1/datasets/{quote(own, safe='')}")
    base.say(f"withdrew {name}; its files were not deleted")


def _check_own(name: str) -> None:
    found = base.api().get(f"/api/v1/datasets/{_path(name)}")
    owner = next((holder for holder in found["holders"] if holder["role"] == "owner"), None)
    if owner is None or owner["state"] != "self":
        raise BadInput(f"{name} belongs to another island", hint="Run this command at the island that owns it.")


@app.command()
def ls(as_json: base.Json = False) -> None:
    """List the datasets of all islands."""
    found = base.api().get("/api/v1/datasets")
    _list(found, as_json, "no datasets; publish one with: island dataset publish PATH --name NAME")


@app.command()
def search(
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORDS]...", help="Words that must all occur.")] = None,
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column name, prefix of a column name, or UCD. Case-insensitive.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="'circle RA DEC RADIUS' in degrees (ICRS), for example 'circle 187.7 12.4 5'.")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(metavar="FROM..TO", help="Range of ISO 8601 dates or times in UTC. Either end may be empty."),
    ] = None,
    form: Annotated[str | None, typer.Option("--format", help="parquet, avro or hats.")] = None,
    as_json: base.Json = False,
) -> None:
    """Search datasets by words, column, sky region, time and format. Lists datasets that match all conditions."""
    found = base.api().get(
        "/api/v1/datasets/search",
        words=" ".join(words) if words else None,
        column=column,
        region=region,
        time=time,
        format=form,
    )
    _list(found, as_json, "no dataset matches")


def _list(found: list[dict[str, Any]], as_json: bool, empty: str) -> None:
    if not as_json:
        found = [
            item | {"bytes": base.format_size(item["bytes"]), "updated": (item["updated"] or "")[:19]} for item in found
        ]
    base.show_rows(found, COLUMNS, as_json, empty=empty)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME[@SNAPSHOT]", help="As `island dataset ls` shows it.")],
    as_json: base.Json = False,
) -> None:
    """Show a dataset: columns, sky coverage, time range, holders, and how much of it is local."""
    found = base.api().get(f"/api/v1/datasets/{_path(name)}")
    if as_json:
        base.show_json(found)
        return
    found["read"] = _url(found)
    tables = {key: found.pop(key) for key in ("columns", "holders", "warnings", "details")}
    found |= {key: base.format_size(found[key]) for key in ("bytes", "bytes_local", "bytes_moved")}
    base.show_pairs({key: value for key, value in found.items() if value not in (None, "", [])}, False)
    for key, value in tables["details"].items():
        base.print_line(f"{base.format_cell(key)}: {base.format_cell(value)}")
    for title, columns in (
        ("columns", ("name", "type", "unit", "ucd", "description")),
        ("holders", ("island", "role", "state", "since")),
    ):
        if tables[title]:
            base.print_line("")
            base.show_table(columns, ([_cell(item, column) for column in columns] for item in tables[title]))
    for warning in tables["warnings"]:
        base.say(f"warning: {base.format_cell(warning)}")


def _url(found: Mapping[str, Any]) -> str:
    """The URL at which programs read a dataset. The rows of a HATS catalog are in a folder of it."""
    version = "" if found["newest"] else f"@{found['snapshot']}"
    rows = "/" + found["details"].get("hats.rows", "dataset") if found["format"] == "hats" else ""
    return f"island://{found['dataset']}{version}{rows}"


def _cell(item: Mapping[str, Any], key: str) -> str:
    text = base.format_cell(item.get(key) or "")
    return text if len(text) <= 100 else text[:97] + "..."


def _path(name: str) -> str:
    owner, slash, rest = name.strip().removeprefix("island://").partition("/")
    if not slash or not owner or not rest or "/" in rest:
        raise BadInput(f"{name!r} is not the name of a dataset", hint="Use OWNER/NAME or OWNER/NAME@SNAPSHOT.")
    return f"{quote(owner, safe='')}/{quote(rest, safe='@')}"


# --- replicas ---------------------------------------------------------------------------------


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME[@SNAPSHOT]", help="As `island dataset ls` shows it.")],
    as_json: base.Json = False,
) -> None:
    """Fetch a complete, verified replica. Data that are already local are not transferred again."""
    with interrupts.undoable(), base.progress_bar(f"fetching {name}") as progress:
        found = base.api(timeout=600).follow("POST", f"/api/v1/files/{_path(name)}/fetch", None, progress)
    base.say(
        f"{found['dataset']} is complete and verified: {base.format_size(found['bytes'])},"
        f" of which {base.format_size(found['fetched'])} were transferred now; snapshot {found['snapshot'][:12]}"
    )
    if as_json:
        base.show_json(found)
    else:
        base.print_line(found["dataset"])


@app.command()
def drop(
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME[@SNAPSHOT]", help="A dataset of another island.")],
    as_json: base.Json = False,
) -> None:
    """Delete the local replica of another island's dataset."""
    found = base.api().delete(f"/api/v1/files/{_path(name)}")
    base.say(f"dropped {base.format_size(found['freed'])} of {found['dataset']} from this island")
    if as_json:
        base.show_json(found)
