"""Limits on the outputs of statements, and the settings and statements that pass inputs to an engine. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from island.jobs.core import compact_json
from island.jobs.messages import MAX_OUTPUT, InputRef
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


def cut_output(output: str, limit: int = MAX_OUTPUT) -> str:
    """Livy's output object as JSON of at most about `limit` bytes. A notice in it says what was cut."""
    size = len(output.encode("utf-8", "surrogatepass"))
    if size <= limit:
        return output
    value = json.loads(output)
    room = limit // 2
    if value.get("status") == "error":
        value["evalue"] = str(value.get("evalue", ""))[: room // 8] + f"\n[cut by island: {size} bytes]"
        value["traceback"] = [str(line)[:1000] for line in value.get("traceback", [])[:100]]
        return compact_json(value)
    data: dict[str, Any] = {}
    whole = value.get("data", {})
    for kind, content in whole.items():
        data.update(_cut_content(kind, content, room // max(4, len(whole)), size))
    value["data"] = data
    return compact_json(value)


def _cut_content(kind: str, content: Any, room: int, size: int) -> dict[str, Any]:
    notice = f"[cut by island: the output has {size} bytes; write it to a file, or select less]"
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        rows, used, kept = content["data"], 0, []
        for row in rows:
            used += len(compact_json(row)) * 2
            if used > room:
                break
            kept.append(row)
        text = f"[cut by island: {len(kept)} of {len(rows)} rows are kept; select less]"
        return {kind: {**content, "data": kept}, "text/plain": text}
    text = content if isinstance(content, str) else compact_json(content)
    if kind == "text/plain":
        return {kind: text[:room] + "\n" + notice}
    return {kind: content} if len(text) * 2 <= room else {"text/plain": notice}
