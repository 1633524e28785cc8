"""Access of the tests to `protocols/openapi.yaml`: operations by method and path, schemas, and checks of answers."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

PATH = Path(__file__).resolve().parents[2] / "protocols" / "openapi.yaml"
METHODS = ("get", "post", "put", "patch", "delete")


@functools.cache
def document() -> dict[str, Any]:
    """The whole document."""
    loaded: dict[str, Any] = yaml.safe_load(PATH.read_text("utf-8"))
    return loaded


def resolved(node: Any) -> Any:
    """A node, or the target of its `$ref`."""
    while isinstance(node, dict) and set(node) == {"$ref"}:
        pointer = node["$ref"].removeprefix("#/").split("/")
        node = document()
        for part in pointer:
            node = node[part.replace("~1", "/").replace("~0", "~")]
    return node


@functools.cache
def operations() -> dict[tuple[str, str], dict[str, Any]]:
    """Every operation, by (METHOD, path)."""
    return {
        (method.upper(), path): operation
        for path, item in document()["paths"].items()
        for method, operation in resolved(item).items()
        if method in METHODS
    }


def operation(method: str, target: str) -> tuple[str, dict[str, Any]]:
    """The documented path and operation of a request target. Constant paths have precedence."""
    path = target.partition("?")[0]
    for key, found in sorted(operations().items(), key=lambda pair: pair[0][1].count("{")):
        pattern = re.sub(r"\\{(\w+)\\}", lambda m: ".+" if m[1] == "path" else "[^/]+", re.escape(key[1]))
        if key[0] == method and re.fullmatch(pattern, path):
            return key[1], found
    raise AssertionError(f"{method} {path} is not documented")


@functools.cache
def _registry() -> Registry[Any]:
    registry: Registry[Any] = Registry().with_resource("urn:island", DRAFT202012.create_resource(document()))
    return registry


def _validator(schema: Any) -> Draft202012Validator:
    # References inside the document are made absolute, so that a part of it can be a schema of its own.
    text = json.dumps(schema).replace('"$ref": "#/', '"$ref": "urn:island#/')
    return Draft202012Validator(json.loads(text), registry=_registry())


def check(schema: Any, value: Any, what: str) -> None:
    """Fail with every difference of `value` from `schema`."""
    problems = [f"{error.json_path}: {error.message[:300]}" for error in _validator(schema).iter_errors(value)]
    assert not problems, f"{what}: " + "; ".join(problems)


def check_answer(method: str, target: str, status: int, kind: str, data: bytes) -> Any:
    """Fail if an answer is not as documented. Returns its JSON (a list for JSON lines), else its bytes."""
    path, found = operation(method, target)
    what = f"{method} {path} -> {status}"
    answer = resolved(found["responses"].get(str(status)) or found["responses"].get("default"))
    assert answer is not None, f"{what} is not documented: {data[:300]!r}"
    content = answer.get("content")
    if not data:
        assert not content or "Refusal" in json.dumps(found["responses"]), f"{what}: an empty body"
        return None
    assert content, f"{what}: a body, and none is documented: {data[:300]!r}"
    media = kind.partition(";")[0].strip()
    assert media in content, f"{what}: {media} is not documented"
    schema = content[media]["schema"]
    if media == "application/x-ndjson":
        lines = [json.loads(line) for line in data.splitlines()]
        for line in lines:
            check(schema, line, what)
        assert all("progress" in line for line in lines[:-1]) and "progress" not in lines[-1], what
        return lines
    if media != "application/json":
        return data
    value = json.loads(data)
    check(schema, value, what)
    if isinstance(value, dict) and set(value) == {"error", "message", "hint", "status"}:
        assert value["status"] == status, what
    return value


def keys(name: str) -> list[str]:
    """The keys of a schema, after those of the schemas on which it is based."""
    schema = document()["components"]["schemas"][name]
    above = keys(schema["$ref"].rpartition("/")[2]) if "$ref" in schema else []
    return above + list(schema.get("properties", {}))


def answer_schemas() -> set[str]:
    """Names of the schemas that answers use, directly or through others."""
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(ref := node.get("$ref"), str):
                name = ref.rpartition("/")[2]
                if "/schemas/" not in ref:
                    walk(resolved({"$ref": ref}))
                elif name not in found:
                    found.add(name)
                    walk(document()["components"]["schemas"][name])
            for key, value in node.items():
                if key != "requestBody":
                    walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    for each in operations().values():
        walk(each["responses"])
    return found
