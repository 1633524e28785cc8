"""The settings and statements that pass inputs to an engine, and lines of its log. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from island.jobs.messages import InputRef
from island.livy.conf import PATH_PREFIX


def input_conf(inputs: Iterable[tuple[InputRef, str]]) -> dict[str, str]:
    """The settings that pass inputs, given with their local paths, to a session: one for each view."""
    return {PATH_PREFIX + view: path for ref, path in inputs for view in ref.views}


def view_statements(inputs: Sequence[InputRef], paths: Sequence[str]) -> list[str]:
    """SQL statements that create the views of the inputs, which are at `paths`, in a Livy of the site."""
    statements = []
    for ref, path in zip(inputs, paths, strict=True):
        files = json.loads(path) if path.startswith("[") else [path]
        source = " UNION ALL ".join(f"SELECT * FROM parquet.`{file.replace('`', '``')}`" for file in files)
        statements.append(f"CREATE OR REPLACE TEMPORARY VIEW `{ref.views[0]}` AS {source}")
        statements += [
            f"CREATE OR REPLACE TEMPORARY VIEW `{alias}` AS SELECT * FROM `{ref.views[0]}`" for alias in ref.views[1:]
        ]
    return statements


def last_line(lines: Iterable[str]) -> str:
    """The last line of a log that is neither empty nor a heading."""
    found = [line.strip() for line in lines if line.strip() and line.strip() not in ("stdout:", "stderr:")]
    return found[-1][:500] if found else ""
