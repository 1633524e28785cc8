"""SQL statements are only in the store modules of their packages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ISLAND = Path(__file__).resolve().parents[2] / "island"

STORES = {
    "cli/demo/data.py": "reads the database of OpenNGC, which is not island's",
    "gossip/own_log_store.py": "the own log",
    "jobs/batch_files.py": "the files of batches, which home and executor share",
    "jobs/home/observation_store.py": "what earlier jobs cost",
    "jobs/result_rows.py": "the statements whose results are files, which home and executor share",
    "kernel/db.py": "migrations and transactions",
    "kernel/db_file.py": "versions and checks of whole files",
    "trust/journal.py": "the journal",
}
"""Modules with SQL that are not called store.py, and what for."""

STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH|CREATE|ALTER|DROP|PRAGMA)\b")


def statements(source: str) -> Iterator[int]:
    """The lines of calls that execute an SQL statement, without savepoints and the like."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("execute"):
            first = node.args[0] if node.args else None
            text = first.values[0] if isinstance(first, ast.JoinedStr) and first.values else first
            if isinstance(text, ast.Constant) and isinstance(text.value, str) and STATEMENT.match(text.value):
                yield node.lineno


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("conn.execute('SELECT 1')", [1]),
        ("lambda conn: conn.execute(f'UPDATE {table} SET x = 1')", [1]),
        ("\nconn.executemany('DELETE FROM x', [])", [2]),
        ("conn.execute('SAVEPOINT x')", []),
        ("pool.execute(job)", []),
    ],
)
def test_statements_are_found(source: str, lines: list[int]) -> None:
    assert list(statements(source)) == lines


def test_sql_is_in_stores_only() -> None:
    found = {
        path.relative_to(ISLAND).as_posix()
        for path in ISLAND.rglob("*.py")
        if any(True for _ in statements(path.read_text("utf-8")))
    }
    assert {name for name in found if not name.endswith("/store.py")} == set(STORES)
