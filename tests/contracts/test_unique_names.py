"""A public class has a name of its own, so that a name in the code and in the documentation means one thing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ISLAND = Path(__file__).resolve().parents[2] / "island"


def classes(source: str) -> Iterator[str]:
    """The public classes of a module."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def aliases(source: str) -> Iterator[str]:
    """The public module-level names of types: those in CamelCase."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and target.id[0].isupper() and not target.id.isupper():
                yield target.id


def shared(sources: dict[str, str]) -> dict[str, list[str]]:
    """The names of public classes that another class or alias has too, with the modules."""
    found: dict[str, list[str]] = {}
    named: dict[str, list[str]] = {}
    for module, source in sorted(sources.items()):
        for name in classes(source):
            found.setdefault(name, []).append(module)
        for name in aliases(source):
            named.setdefault(name, []).append(module)
    all_of = {name: modules + named.get(name, []) for name, modules in found.items()}
    return {name: modules for name, modules in all_of.items() if len(modules) > 1}


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        ({"a": "class Names: ...", "b": "class Names: ..."}, ["Names"]),
        ({"a": "class Names: ...", "b": "Names = list[str]"}, ["Names"]),
        ({"a": "class Names: ...", "b": "Names: TypeAlias = list[str]"}, ["Names"]),
        ({"a": "class _Names: ...\nNAMES = 1", "b": "class _Names: ...\ndef f():\n    class Names: ..."}, []),
        ({"a": "class Names: ...\nNames.x = 1", "b": "from a import Names\nnames = Names()"}, []),
    ],
)
def test_shared_names_are_found(sources: dict[str, str], names: list[str]) -> None:
    assert sorted(shared(sources)) == names


def test_no_two_public_classes_share_a_name() -> None:
    sources = {str(path.relative_to(ISLAND)): path.read_text() for path in ISLAND.rglob("*.py")}
    assert len(sources) > 100
    assert shared(sources) == {}
