"""Python statements with the behaviour of Livy, without Spark."""

from __future__ import annotations

import datetime
import decimal
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from island.engine.shell import OutputCapture, PythonShell, StatementCancelled, plain
from island.livy.messages import Output


class Runner:
    """A shell that drops text printed between statements."""

    def __init__(self) -> None:
        self.outside: list[str] = []
        self.capture = OutputCapture(1000, self.outside.append)
        self.shell = PythonShell(self.capture)

    def __call__(self, code: str) -> Output:
        sys.stdout = sys.stderr = self.capture
        return self.shell.run(code, 0)


@pytest.fixture
def run() -> Iterator[Runner]:
    kept = sys.stdout, sys.stderr, sys.stdin, sys.modules["__main__"]
    try:
        yield Runner()
    finally:
        sys.stdout, sys.stderr, sys.stdin, sys.modules["__main__"] = kept


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("1+1", "2"),
        ("a = 1\nb = 2\na + b", "3"),
        ("print('x')\n5", "x\n5"),
        ("1\n2", "2"),
        ("None", ""),
        ("z = 9", ""),
        ("'abc'", "'abc'"),
        ("", ""),
        ("   \n  ", ""),
        ("# nothing", ""),
        ("def f(n):\n    return n * 2\n\nf(21)", "42"),
        ("for i in range(3):\n    print(i)", "0\n1\n2"),
        ("for i in range(2): i", "0\n1"),
        ("import sys\nprint('to err', file=sys.stderr)", "to err"),
        ("x = (5\n%3)\nx", "2"),
        ('"""\n%json\n"""', "'\\n%json\\n'"),
        ("__name__", "'__main__'"),
    ],
)
def test_what_is_shown(run: Runner, code: str, text: str) -> None:
    assert run(code) == Output("ok", 0, data={"text/plain": text})


def _error(output: Output) -> tuple[Any, ...]:
    assert output.status == "error"
    return output.ename, output.evalue, output.traceback


def test_errors(run: Runner) -> None:
    heading = "Traceback (most recent call last):\n"
    assert _error(run("print('lost')\n1/0")) == (
        "ZeroDivisionError",
        "division by zero",
        [heading, "ZeroDivisionError: division by zero\n"],
    )
    assert _error(run("def g():\n    return missing\n\ng()")) == (
        "NameError",
        "name 'missing' is not defined",
        [heading, '  File "<stdin>", line 2, in g\n', "NameError: name 'missing' is not defined\n"],
    )
    assert _error(run("exit()"))[:2] == ("SystemExit", "None")
    assert _error(run("raise KeyboardInterrupt"))[0] == "KeyboardInterrupt"
    assert _error(run("x = (1,"))[0] == "SyntaxError"
    assert _error(run("for i in"))[1] == "invalid syntax (<stdin>, line 1)"
    chained = _error(run("try:\n    1/0\nexcept Exception as e:\n    raise ValueError('b') from e"))[2]
    assert [line for line in chained if "Error" in line] == ["ZeroDivisionError: division by zero\n", "ValueError: b\n"]
    assert not [line for line in chained if __file__ in line or "shell.py" in line]
    assert _error(run("class E(Exception):\n    def __str__(self): 1/0\nraise E()"))[:2] == (
        "E",
        "<E: its __str__ failed>",
    )
    assert _error(run("\0"))[0] in ("ValueError", "SyntaxError")
    assert run("'goes on'").data == {"text/plain": "'goes on'"}


def test_magics(run: Runner) -> None:
    rows = "v = [{'a': 1, 'b': 'x'}, {'a': 2, 'b': None}]\n"
    assert run(rows + "%json v").data == {"application/json": [{"a": 1, "b": "x"}, {"a": 2, "b": None}]}
    table = run("%table v").data
    assert table == {
        "application/vnd.livy.table.v1+json": {
            "headers": [{"name": "a", "type": "INT_TYPE"}, {"name": "b", "type": "STRING_TYPE"}],
            "data": [[1, "x"], [2, None]],
        }
    }
    assert run("print('p')\n%json v").data == {
        "application/json": [{"a": 1, "b": "x"}, {"a": 2, "b": None}],
        "text/plain": "p",
    }
    assert _error(run("%cheese v")) == (
        "UnknownMagic",
        "unknown magic command 'cheese'",
        ["UnknownMagic: unknown magic command 'cheese'\n"],
    )
    assert _error(run("%%sql select 1"))[1] == "unknown magic command '%sql'"
    assert _error(run("%json nowhere"))[0] == "NameError"
    assert _error(run("w = [[1], ['a']]\n%table w"))[0] == "TypeMismatch"
    assert _error(run("w = 5\n%table w"))[0] == "TypeError"
    assert _error(run("w = object()\n%json w"))[0] == "TypeError"
    assert _error(run("%matplot v"))[0] == "TypeError"


def test_output_is_bounded_and_counted(run: Runner) -> None:
    text = run("print('y' * 5000)").text
    assert text == "y" * 1000 + "\n... 4001 more characters were printed; the limit is 1000"
    many = run("for i in range(100_000): print(i)").text
    assert len(many) < 1100 and many.startswith("0\n1\n2\n")
    run.capture.write("between")
    assert run.outside == ["between"]


def test_a_cancel_passes(run: Runner) -> None:
    run.shell.names["Cancelled"] = StatementCancelled
    with pytest.raises(StatementCancelled):
        run("try:\n    raise Cancelled\nexcept Exception:\n    pass")
    assert run("1").data == {"text/plain": "1"}


def test_plain_values() -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(TypeError, match="nested"):
        plain(deep)
    value = {
        1: float("nan"),
        "d": decimal.Decimal("1.5"),
        "t": datetime.date(2026, 1, 2),
        "s": (1, None, True, float("inf")),
    }
    assert json.dumps(plain(value)) == '{"1": null, "d": 1.5, "t": "2026-01-02", "s": [1, null, true, null]}'
