"""Messages that are added to a failed statement whose table is not an input of its session. Pure."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any, Final

from island.catalog.view_names import plain_name, view_name
from island.jobs.core import compact_json
from island.jobs.messages import InputRef
from island.livy.conf import INPUTS_KEY

_NO_TABLE: Final = re.compile(
    r"TABLE_OR_VIEW_NOT_FOUND\]?[^`]*((?:`[^`]{1,200}`\.?)+)|Table or view not found: ([A-Za-z0-9_.`]{1,200})"
)


def missing_table(output: str) -> str:
    """The name of the table or view that a failed statement did not find, or ""."""
    if '"error"' not in output[:4096] or ("NOT_FOUND" not in output and "not found" not in output):
        return ""
    value = json.loads(output)
    if value.get("status") != "error":
        return ""
    found = _NO_TABLE.search(str(value.get("evalue", "")))
    return (found[1] or found[2]).replace("`", "").strip(".") if found else ""


def suggest(table: str, datasets: Sequence[tuple[str, str]]) -> tuple[str, bool]:
    """The dataset `OWNER/NAME` that `table` probably names, or "". The flag is True if exactly one dataset matches."""
    wanted = plain_name(table).lower()
    names: dict[str, list[str]] = {}
    for owner, name in datasets:
        for view in {view_name(owner, name), plain_name(f"{owner}.{name}"), plain_name(name)}:
            names.setdefault(view.lower(), []).append(f"{owner}/{name}")
    if wanted in names:
        return names[wanted][0], len(names[wanted]) == 1
    near = difflib.get_close_matches(wanted, sorted(names), n=1, cutoff=0.8)
    return (names[near[0]][0], False) if near else ("", False)


def views_meant(table: str, inputs: Sequence[InputRef]) -> list[str]:
    """The full view names of the inputs whose dataset name is `table`, if several inputs share that name.

    In that case no view has the short name.
    """
    wanted = plain_name(table).lower()
    return [ref.views[0] for ref in inputs if len(ref.views) == 1 and plain_name(ref.name).lower() == wanted]


def with_hint(output: str, table: str, dataset: str, exact: bool, inputs: Sequence[str]) -> str:
    """The output of a failed statement, with the line of the conf that would make its table an input."""
    value = json.loads(output)
    line = f"{INPUTS_KEY} = {','.join([*inputs, dataset])}"
    which = f"`{table}` is the dataset {dataset}" if exact else f"`{table}` may mean the dataset {dataset}"
    text = f"{which}, which is not an input of this session. Open a session with this line in its conf: {line}"
    return compact_json(_with_message(value, text))


def with_views(output: str, table: str, views: Sequence[str]) -> str:
    """The output of a failed statement whose table name is ambiguous, with the unambiguous view names."""
    text = f"several inputs of this session are called `{table}`: write {' or '.join(views)}"
    return compact_json(_with_message(json.loads(output), text))


def _with_message(value: dict[str, Any], message: str) -> dict[str, Any]:
    text = f"island: {message}"
    value["evalue"] = f"{str(value.get('evalue', '')).rstrip()}\n{text}"
    value["traceback"] = [*value.get("traceback", []), f"{text}\n"]
    return value
