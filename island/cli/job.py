"""`island job`: sessions and batches at all islands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from island.cli import base
from island.cli.job_progress import FAILED, KEY_HEADER, follow, get, key_headers, path, settle
from island.cli.statement_output import print_statements
from island.errors import BadInput

app = typer.Typer(help="Jobs (sessions and batches) at all islands.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The local id, the public id, or a unique prefix of it.")]
Kind = Annotated[str | None, typer.Option(help="session or batch, if a name matches both.")]
KeyFile = Annotated[
    str | None,
    typer.Option(
        help="File with the job's key (- reads stdin), for a job of another home. Default: ISLAND_JOB_KEY. "
        "`island job show ID --show-key` at its home shows the key."
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(min=0, metavar="SECONDS", help="Wait at most this long; the job goes on. Default: no limit."),
]
Memory = Annotated[str | None, typer.Option(help="Memory of Spark's driver, for example 2g.")]
Settings = Annotated[
    list[str] | None, typer.Option("--conf", metavar="KEY=VALUE", help="Spark setting. May be repeated.")
]


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="job")


@app.command("ls")
def ls(
    live: Annotated[bool, typer.Option("--live", help="Only jobs that have not ended.")] = False,
    as_json: base.Json = False,
) -> None:
    """List your jobs, newest first. The administrator sees all jobs, also those of other islands that run here."""
    rows = base.api().get("/api/v1/jobs", live=1 if live else None)
    base.show_rows(rows, ("id", "job", "kind", "state", "island", "owner", "inputs"), as_json, empty="no jobs")


@app.command("show")
def show(
    job: Id,
    kind: Kind = None,
    key_file: KeyFile = None,
    show_key: Annotated[
        bool,
        typer.Option(
            "--show-key", help="Show the job's key too. Keep it secret: it gives access to the job from any island."
        ),
    ] = False,
    as_json: base.Json = False,
) -> None:
    """Show a job and, of a session, the results of its statements (not with --json)."""
    api, headers = base.api(), key_headers(key_file)
    row = get(api, path(job), headers, kind=kind, key=1 if show_key else None)
    base.show_pairs(row, as_json)
    of_this_home = headers or row["id"] is not None  # the statements of other homes' jobs are stored there
    if row["kind"] == "session" and of_this_home and not as_json:
        print_statements(get(api, path(row["job"], "statements"), headers))


@app.command("explain")
def explain(job: Id, kind: Kind = None, key_file: KeyFile = None, as_json: base.Json = False) -> None:
    """Show why a job runs where it runs: each island with its estimate, or the reason for its rejection."""
    rows = get(base.api(), path(job, "explain"), key_headers(key_file), kind=kind)
    if as_json:
        base.show_json(rows)
        return
    if not rows:
        base.say("no island has been considered yet")
    for attempt in sorted({row["attempt"] for row in rows}):
        these = [row for row in rows if row["attempt"] == attempt]
        again = "recomputed" if these[0]["replayed"] else "NOT REPRODUCED"
        base.say(f"decision {attempt}, {these[0]['at']}, {again} from the stored values:")
        base.show_table(("island", "verdict", "reason"), [(r["island"], r["verdict"], r["reason"]) for r in these])
        for row in these:
            if row.get("terms"):
                base.print_line(f"{row['island']}: {base.format_cell(row['seconds'])} s = {row['terms']}")
            if row.get("observed"):
                base.print_line(f"observed at {row['island']}: {row['observed']}")


@app.command("accuracy")
def accuracy(as_json: base.Json = False) -> None:
    """Show how well the costs of earlier jobs were predicted: the ratio of observed to predicted for each term."""
    rows = base.api().get("/api/v1/routing/accuracy")
    base.show_rows(rows, ("term", "unit", "jobs", "median_ratio", "within_factor_2"), as_json, empty="no jobs")


@app.command("cancel")
def cancel(job: Id, kind: Kind = None, key_file: KeyFile = None) -> None:
    """Cancel a job. Results that it has produced stay available."""
    key = key_headers(key_file).get(KEY_HEADER, "")
    row: dict[str, Any] = base.api().post(path(job, "cancel"), {"key": key}, kind=kind)
    base.say(f"{row['kind']} {row['job']} is {row['state']}")


@app.command("logs")
def logs(
    job: Id,
    kind: Kind = None,
    key_file: KeyFile = None,
    follow_it: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the job has ended; Ctrl-C stops following.")
    ] = False,
) -> None:
    """Show the log of the engine and the steps that the island took for the job."""
    api, headers = base.api(), key_headers(key_file)
    if follow_it:
        public = job if headers else get(api, path(job), headers, kind=kind)["job"]
        follow(api, public, headers)
        return
    for line in get(api, path(job, "log"), headers, kind=kind)["log"]:
        base.print_line(line)


@app.command("wait")
def wait(job: Id, key_file: KeyFile = None, timeout: Timeout = None, as_json: base.Json = False) -> None:
    """Wait until a batch has ended, or a session is idle or has ended. Exit code 1 if it failed."""
    _report(settle(base.api(), job, headers=key_headers(key_file), timeout=timeout), as_json)


@app.command("submit")
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Python file (.py).")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="OWNER/NAME", help="Dataset to use as an input. May be repeated."),
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Option("--arg", help="Argument for the file. May be repeated.")
    ] = None,
    settings: Settings = None,
    memory: Memory = None,
    name: Annotated[str | None, typer.Option(help="Name of the batch.")] = None,
    at: Annotated[str, typer.Option(metavar="ISLAND", help="Run the batch at this island only.")] = "",
    and_wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the batch has ended. Exit code 1 if it failed.")
    ] = False,
    timeout: Timeout = None,
) -> None:
    """Run a Python file as a batch where its inputs are, and print the job's public id."""
    if timeout is not None and not and_wait:
        raise typer.BadParameter("it is for --wait only", param_hint="--timeout")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{file} cannot be read: {error.strerror}", hint="Check the path and the permissions of the file."
        ) from error
    query = {"file": file.name, "input": inputs or None, "arg": arguments or None, "name": name, "at": at or None}
    api = base.api()
    row = api.post("/api/v1/batches", data, **query, conf=settings or None, memory=memory)
    after = "" if and_wait else f"; follow it with: island job logs --follow {row['job']}"
    base.say(f"batch {row['id']} is accepted{after}")
    base.print_line(row["job"])
    if and_wait:
        _report(settle(api, row["job"], timeout=timeout), as_json=False)


def _report(row: dict[str, Any], as_json: bool) -> None:
    """Print how a job has settled; exit with code 1 if it failed."""
    if as_json:
        base.show_json(row)
    else:
        base.say(f"{row['kind']} {row['job']} is {row['state']}" + (f": {row['reason']}" if row["reason"] else ""))
    if row["state"] in FAILED:
        raise typer.Exit(1)
