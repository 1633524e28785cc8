"""No coroutine waits for a file system: a mount that hangs would stop the event loop, and with it the island."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "island"

ALLOWED = {
    "daemon.py:_remove_running": "one file in the home folder, when the daemon stops",
    "daemon.py:_write_running": "one file in the home folder, when the daemon starts",
    "daemon.py:run_island": "the modes of the home folder, before the daemon starts",
    "engine/class_archive.py:_dump": "a folder of the engine's own, in a process of its own",
    "engine/class_archive.py:_list_classes": "a folder of the engine's own, in a process of its own",
    "engine/class_archive.py:make": "a folder of the engine's own, in a process of its own",
    "engine/lifecycle.py:live": "a folder of the engine's own, in a process of its own",
    "engine/lifecycle.py:_run": "a folder of the engine's own, in a process of its own",
    "jobs/engines/embedded_engine.py:_run_once": "the folders with Python's modules",
    "kernel/processes.py:_start": "the folders with Python's modules",
    "trust/service.py:_found": "one file in the home folder, once in its life",
}
"""Coroutines that use files directly, and why they may. Files that a user or another island names are no reason."""

METHODS = {
    "chmod", "exists", "glob", "hardlink_to", "is_dir", "is_file", "is_mount", "is_symlink", "iterdir", "lstat",
    "mkdir", "read_bytes", "read_text", "readlink", "rename", "rglob", "rmdir", "samefile", "stat", "symlink_to",
    "unlink", "write_bytes", "write_text",
}  # fmt: skip
"""Methods of `Path` that no other class of the package has."""

OF_OS = {
    "access", "chmod", "link", "listdir", "lstat", "makedirs", "mkdir", "open", "readlink", "remove", "rename",
    "replace", "rmdir", "scandir", "stat", "statvfs", "symlink", "truncate", "unlink", "utime", "walk",
}  # fmt: skip

OF_OS_PATH = {
    "exists",
    "getmtime",
    "getsize",
    "isdir",
    "isfile",
    "islink",
    "ismount",
    "lexists",
    "realpath",
    "samefile",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def blocks(call: ast.Call) -> bool:
    """Whether a call waits for a file system by itself."""
    match call.func:
        case ast.Name("open"):
            return True
        case ast.Attribute(ast.Name("os"), name):
            return name in OF_OS
        case ast.Attribute(ast.Attribute(ast.Name("os"), "path"), name):
            return name in OF_OS_PATH
        case ast.Attribute(ast.Name("shutil"), name):
            return name != "which"
        case ast.Attribute(_, "open"):  # not `open` of a database or a session
            return (
                bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value in ("rb", "wb", "w")
            )
        case ast.Attribute(_, "resolve"):  # `Path.resolve`: names of islands and hosts are resolved with arguments
            return not call.args and all(keyword.arg == "strict" for keyword in call.keywords)
        case ast.Attribute(_, name):
            return name in METHODS
    return False


def calls(function: Function) -> Iterator[ast.Call]:
    """The calls in a function, without those in functions and lambdas within it, which may run in a thread."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Call):
            yield node
        waiting += ast.iter_child_nodes(node)


def imports(tree: ast.Module) -> dict[str, str]:
    """The names that a module imports from the package, with their full names."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "island"
        for alias in node.names
    }


def called(call: ast.Call, module: str, imported: dict[str, str]) -> str:
    """The full name of the function or method of the package that is called, as far as its name tells it."""
    match call.func:
        case ast.Name(name):
            return imported.get(name, f"{module}.{name}")
        case ast.Attribute(ast.Name("self"), name):
            return f"{module}.{name}"
        case ast.Attribute(ast.Name(alias), name) if alias in imported:
            return f"{imported[alias]}.{name}"
    return ""


def blocking_coroutines(sources: dict[str, str]) -> set[str]:
    """The coroutines that wait for a file system, also in functions that they call. `sources` has texts by path."""
    found: set[str] = set()
    guilty: set[str] = set()
    callers: list[tuple[str, str, bool, set[str]]] = []
    for path, text in sources.items():
        tree = ast.parse(text)
        module, imported = "island." + path.removesuffix(".py").replace("/", "."), imports(tree)
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inside = list(calls(node))
                names = {called(call, module, imported) for call in inside}
                is_coroutine, place = isinstance(node, ast.AsyncFunctionDef), f"{path}:{node.name}"
                callers.append((f"{module}.{node.name}", place, is_coroutine, names))
                if any(blocks(call) for call in inside):
                    (found if is_coroutine else guilty).add(place if is_coroutine else f"{module}.{node.name}")
    before = -1
    while before != len(guilty):
        before = len(guilty)
        guilty |= {name for name, _, is_coroutine, names in callers if not is_coroutine and names & guilty}
    return found | {place for _, place, is_coroutine, names in callers if is_coroutine and names & guilty}


@pytest.mark.parametrize(
    ("body", "is_found"),
    [
        ("path.stat()", True),
        ("path.open('rb')", True),
        ("open(path)", True),
        ("os.path.realpath(path)", True),
        ("path.resolve(strict=True)", True),
        ("shutil.rmtree(path)", True),
        ("helper(path)", True),
        ("other.helper(path)", True),
        ("imported(path)", True),
        ("await workers.disk(path.stat)", False),
        ("await workers.disk(lambda: path.stat())", False),
        ("await workers.disk(helper, path)", False),
        ("names.resolve('host', 80)", False),
        ("await session.open(head, body)", False),
    ],
)
def test_blocking_calls_are_found(body: str, is_found: bool) -> None:
    head = "from island.x import other\nfrom island.x.other import helper as imported\n"
    functions = "def helper(path):\n    deeper(path)\ndef deeper(path):\n    path.exists()\n"
    text = f"{head}{functions}async def f(path):\n    {body}"
    other = "def helper(path):\n    return path.read_bytes()"
    assert blocking_coroutines({"x/y.py": text, "x/other.py": other}) == ({"x/y.py:f"} if is_found else set())


def test_no_coroutine_waits_for_a_file_system() -> None:
    paths = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    sources = {name: path.read_text("utf-8") for name, path in paths.items() if not name.startswith("cli/")}
    assert blocking_coroutines(sources) == set(ALLOWED)
