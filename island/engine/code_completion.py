"""Candidates for the completion of code in a session. Runs in the process of the session."""

from __future__ import annotations

import re
import rlcompleter
from collections.abc import Iterable
from typing import Any

MOST = 500
"""Maximum number of candidates."""

LONGEST = 200
"""Longer candidates are left out, in characters."""

_PYTHON = re.compile(r"(?:\w+\.)*\w*\Z")
_SQL = re.compile(r"[\w`]*\Z")
_KEYWORDS = """
SELECT DISTINCT FROM WHERE GROUP BY HAVING ORDER LIMIT OFFSET WITH AS AND OR NOT NULL IS IN BETWEEN LIKE EXISTS
CASE WHEN THEN ELSE END CAST JOIN INNER LEFT RIGHT FULL OUTER CROSS ON USING UNION ALL INTERSECT EXCEPT ASC DESC
SHOW TABLES DESCRIBE EXPLAIN CREATE TEMPORARY VIEW COUNT SUM AVG MIN MAX ABS ROUND COALESCE
""".split()  # noqa: SIM905 - a list of one word per line would be longer than the module


def python_names(code: str, names: dict[str, Any]) -> list[str]:
    """The last parts of the names that may continue the end of `code`: variables, builtins, keywords, attributes.

    To list attributes, the object before the last dot is looked up as Python does it, without calling anything
    but its properties.
    """
    found = _PYTHON.search(code)
    text = found[0] if found else ""
    completer = rlcompleter.Completer(names)
    if "." in text:
        matches: Iterable[str] = completer.attr_matches(text)
    else:
        matches = completer.global_matches(text) if text else ()
    return _listed(match.rpartition(".")[2] for match in matches)


def sql_names(code: str, views: Iterable[str]) -> list[str]:
    """The keywords and views that may continue the end of `code`."""
    found = _SQL.search(code)
    text = found[0].lower() if found else ""
    return _listed(name for name in (*views, *_KEYWORDS) if text and name.lower().startswith(text))


def _listed(names: Iterable[str]) -> list[str]:
    # rlcompleter appends what usually follows: a parenthesis, a colon or a space.
    plain = dict.fromkeys(name.rstrip(" (:") if name.isascii() else name for name in names)
    return [name.removesuffix("()") for name in plain if name and len(name) <= LONGEST][:MOST]
