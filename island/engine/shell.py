"""Python statements with the behaviour of Livy: output, errors and magics.

- The output is the printed text, followed by the value of the last expression of the statement.
- If a statement fails, its printed text is dropped. The traceback omits the statement's module frame.
- `%json NAME`, `%table NAME` and `%matplot NAME` are supported on separate lines.

This module is independent of Spark; the caller sets the names that statements can use.
"""

from __future__ import annotations

import ast
import base64
import datetime
import decimal
import io
import json
import math
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

from island.livy.messages import Output

FILENAME: Final = "<stdin>"
TABLE_TYPE: Final = "application/vnd.livy.table.v1+json"
MAX_DEPTH: Final = 100


class StatementCancelled(BaseException):
    """The statement was cancelled. Not an Exception, so that `except Exception` does not swallow it."""


class MagicError(Exception):
    """A magic cannot show its argument. `ename` is the name of the error for the client."""

    def __init__(self, ename: str, text: str) -> None:
        super().__init__(text)
        self.ename = ename


class OutputCapture(io.TextIOBase):
    """Standard output of statements, at most `limit` characters of each. Text between statements goes to `outside`."""

    def __init__(self, limit: int, outside: Callable[[str], object]) -> None:
        self.limit = limit
        self.outside = outside
        self._active = False
        self._parts: list[str] = []
        self._size = 0
        self._dropped = 0

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has an attribute here, io a property
        """The encoding that user code sees."""
        return "utf-8"

    def writable(self) -> bool:
        """Always True."""
        return True

    def write(self, text: str) -> int:
        """Add `text`. Characters beyond the limit are dropped and counted."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if not self._active:
            self.outside(text)
        elif (room := self.limit - self._size) >= len(text):
            self._parts.append(text)
            self._size += len(text)
            # The list of many tiny parts needs more memory than their text.
            if len(self._parts) > 10_000:
                self._parts = ["".join(self._parts)]
        else:
            self._parts.append(text[:room])
            self._size += room
            self._dropped += len(text) - room
        return len(text)

    def begin(self) -> None:
        """Start capturing the output of a statement."""
        self._parts, self._size, self._dropped, self._active = [], 0, 0, True

    def end(self) -> str:
        """Stop capturing, and return the output. If characters were dropped, the last line says how many."""
        self._active = False
        text = "".join(self._parts)
        self._parts = []
        if self._dropped:
            text += f"\n... {self._dropped} more characters were printed; the limit is {self.limit}"
        return text


class PythonShell:
    """Runs statements in one Python namespace."""

    def __init__(self, capture: OutputCapture) -> None:
        self.capture = capture
        # Functions of a module named __main__ are sent to Spark's workers by value.
        self.module = types.ModuleType("__main__")
        self.module.__dict__["__builtins__"] = __builtins__
        sys.modules["__main__"] = self.module
        self.names = self.module.__dict__

    def run(self, code: str, number: int) -> Output:
        """Run one statement. `number` is the execution count. Raises only `StatementCancelled`."""
        self.capture.begin()
        # An earlier statement may have closed or replaced the streams.
        sys.stdin, sys.stdout, sys.stderr = io.StringIO(""), self.capture, self.capture
        data: dict[str, Any] = {}
        try:
            for part in _parts(code):
                if part.startswith("%"):
                    data.update(self._magic(part))
                else:
                    self._execute(part)
        except StatementCancelled:
            self.capture.end()
            raise
        except MagicError as error:
            self.capture.end()
            line = f"{error.ename}: {error}\n"
            return Output("error", number, ename=error.ename, evalue=str(error), traceback=[line])
        except BaseException as error:  # noqa: BLE001 - any error of the statement is its result
            self.capture.end()
            return error_output(error, number)
        text = self.capture.end().rstrip()
        if text or not data:
            data["text/plain"] = text
        return Output("ok", number, data=data)

    def _execute(self, code: str) -> None:
        """Run `code`. The last statement is compiled as an interactive one, which prints its value."""
        tree: ast.Module = compile(code, FILENAME, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)  # type: ignore[assignment]  # of "exec" it is a module
        for node in tree.body[:-1]:
            exec(compile(ast.Module([node], []), FILENAME, "exec", dont_inherit=True), self.names)
        for node in tree.body[-1:]:
            exec(compile(ast.Interactive([node]), FILENAME, "single", dont_inherit=True), self.names)

    def _magic(self, line: str) -> dict[str, Any]:
        name, _, rest = line.strip()[1:].partition(" ")
        show = {"json": _json_magic, "table": _table_magic, "matplot": _matplot_magic}.get(name)
        if show is None:
            raise MagicError("UnknownMagic", f"unknown magic command '{name}'")
        if rest.strip() not in self.names:
            raise MagicError("NameError", f"name '{rest.strip()}' is not defined")
        return show(self.names[rest.strip()])


def error_output(error: BaseException, number: int) -> Output:
    """The output of a failed statement, as Livy shows it."""
    name = type(error).__name__
    try:
        value = str(error)
    except Exception:  # noqa: BLE001 - the user's own __str__ may fail in any way
        value = f"<{name}: its __str__ failed>"
    return Output("error", number, ename=name, evalue=value, traceback=_traceback(error))


def _traceback(error: BaseException) -> list[str]:
    """The lines of a traceback, without the frames of this module and of the statement itself."""
    summary = traceback.TracebackException.from_exception(error)
    if isinstance(error, SyntaxError) and all(frame.filename == __file__ for frame in summary.stack):
        return list(summary.format_exception_only())
    todo = [summary]
    while todo:
        part = todo.pop()
        kept = [f for f in part.stack if f.filename != __file__ and (f.filename, f.name) != (FILENAME, "<module>")]
        part.stack = traceback.StackSummary.from_list(kept)
        todo += [below for below in (part.__cause__, part.__context__) if below is not None]
    lines = list(summary.format())
    if not summary.stack:
        # Python omits the heading if there are no frames, but Livy clients expect it.
        lines.insert(len(lines) - len(list(summary.format_exception_only())), "Traceback (most recent call last):\n")
    return lines


def _parts(code: str) -> Iterator[str]:
    """The statement, split into code and magic lines. Valid Python code is not split."""
    lines = code.split("\n")
    if not any(line.startswith("%") for line in lines) or _is_python(code):
        yield code
        return
    pending: list[str] = []
    for line in lines:
        if line.startswith("%"):
            if any(text.strip() for text in pending):
                yield "\n".join(pending)
            pending = []
            yield line
        else:
            pending.append(line)
    if any(text.strip() for text in pending):
        yield "\n".join(pending)


def _is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def plain(value: Any, depth: int = 0) -> Any:
    """`value` converted to JSON types: NaN and infinities become null, dates ISO 8601 text, and keys strings.

    Raises `TypeError` for objects without a JSON form, and for nesting deeper than 100 levels.
    """
    if depth > MAX_DEPTH:
        raise TypeError(f"nested deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, decimal.Decimal):
        return plain(float(value)) if value.is_finite() else None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    # Scalars and arrays of numpy, timestamps of pandas, and others that convert themselves to Python's types.
    for method in ("tolist", "item", "isoformat"):
        if callable(convert := getattr(value, method, None)):
            return plain(convert(), depth + 1)
    raise TypeError(f"an object of type {type(value).__name__} cannot be shown as JSON")


def _json_magic(value: Any) -> dict[str, Any]:
    try:
        return {"application/json": plain(value)}
    except TypeError as error:
        raise MagicError("TypeError", str(error)) from error


_TABLE_TYPES: Final = (
    (bool, "BOOLEAN_TYPE"),
    (int, "INT_TYPE"),
    (float, "DOUBLE_TYPE"),
    (str, "STRING_TYPE"),
    (datetime.datetime, "TIMESTAMP_TYPE"),
    (datetime.date, "DATE_TYPE"),
    (decimal.Decimal, "DECIMAL_TYPE"),
    (dict, "MAP_TYPE"),
    (list | tuple, "ARRAY_TYPE"),
)


def _table_magic(value: Any) -> dict[str, Any]:
    """Rows (lists or dicts) as a table with one type per column. Raises `MagicError` if a column has several types."""
    if not isinstance(value, list | tuple) or not all(isinstance(row, list | tuple | dict) for row in value):
        raise MagicError("TypeError", "%table shows a list of rows, each a list or a dict")
    types_: dict[str, str] = {}
    rows = [dict(row) if isinstance(row, dict) else {str(i): cell for i, cell in enumerate(row)} for row in value]
    for row in rows:
        for name, cell in row.items():
            found = "NULL_TYPE" if cell is None else next((t for cls, t in _TABLE_TYPES if isinstance(cell, cls)), "")
            known = types_.get(str(name), "NULL_TYPE")
            if not found:
                raise MagicError("TypeError", f"a cell of type {type(cell).__name__} cannot be shown in a table")
            if "NULL_TYPE" not in (known, found) and known != found:
                raise MagicError("TypeMismatch", f"column {name} has both {known} and {found}")
            types_[str(name)] = known if found == "NULL_TYPE" else found
    return {
        TABLE_TYPE: {
            "headers": [{"name": name, "type": kind} for name, kind in types_.items()],
            "data": [_json_magic(list(row.values()))["application/json"] for row in rows],
        }
    }


def _matplot_magic(value: Any) -> dict[str, Any]:
    """The current figure of a pyplot module, or the given figure, as a PNG."""
    figure = value.gcf() if hasattr(value, "gcf") else value
    if not hasattr(figure, "savefig"):
        raise MagicError("TypeError", "%matplot shows matplotlib.pyplot, or a figure")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    if hasattr(figure, "clf"):
        figure.clf()
    return {"image/png": base64.b64encode(picture.getvalue()).decode("ascii")}


def cleaned(output: Output) -> Output:
    """The output with lone surrogates, which UTF-8 cannot encode, replaced by escapes."""

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        if isinstance(value, dict):
            return {clean(key): clean(item) for key, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list) else value

    return Output(**{name: clean(getattr(output, name)) for name in Output.__struct_fields__})


def size_of(output: Output) -> int:
    """The approximate number of characters of an output, for the limits."""
    if output.status == "ok":
        return sum(
            len(value) if isinstance(value, str) else len(json.dumps(value)) for value in (output.data or {}).values()
        )
    return len(output.evalue or "") + sum(len(line) for line in output.traceback or [])
