"""`island doctor`: finds what is wrong with an island and its machine."""

from __future__ import annotations

import dataclasses
import os

import typer

from island.cli import base


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("doctor")(doctor)


def doctor(as_json: base.Json = False) -> None:
    """Check configuration, files, databases, disk, ports, engine, peers, clock; exit code 1 if there is a problem.

    It changes nothing and works whether or not the daemon is running. Only a running daemon can report its own
    problems, and let linked islands check whether they can dial this island and whether the clocks agree.
    """
    from island.doctor import core, service
    from island.kernel.ports import SystemClock

    findings = []
    for each in service.examine(base.home(), SystemClock(), os.environ, base.endpoint):
        findings.append(each)
        if not as_json:
            advice = f"\n{'':11}{'':16}{each.advice}" if each.advice else ""
            base.print_line(f"{each.severity:<11}{each.check:<16}{each.found}{advice}")
    if as_json:
        base.show_json([dataclasses.asdict(each) for each in findings])
    count = sum(each.severity == "problem" for each in findings)
    warnings = sum(each.severity == "warning" for each in findings)
    base.say(f"{count} problem{'s' * (count != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    if core.failed(findings):
        raise typer.Exit(1)
