"""SQL conditions on Arrow batches: parsed with sqlglot, then compiled to closures over pyarrow compute.

The text is parsed and never executed. Syntax that is not in `_NODES` is rejected. Values have one
of six kinds: number, text, bytes, truth (Boolean), moment (timestamp, microseconds in UTC), and the
untyped NULL.

Where implementations of SQL differ, the semantics are those of Spark 3.5 (not in ANSI mode):
three-valued logic; `/` is floating-point division; division by zero is NULL; a cast that fails is
NULL; NaN equals NaN and is greater than every number; the logarithm of zero or a negative number is
NULL. Integers are compared exactly; arithmetic on them has 64 bits and wraps around. Decimals are
compared as floating-point numbers, and so are the values of an unsigned 64-bit column in a batch
that has one above 2**63 - 1.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp, parser, tokens
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError

from island.errors import BadInput
from island.formats.columns import find, type_name

MAX_TEXT = 8192
MAX_TOKENS = 2000
MAX_DEPTH = 60
MAX_WILDCARDS = 64
"""Maximum number of `%` and `_` in all LIKE patterns of one condition."""

Kind = Literal["number", "text", "bytes", "truth", "moment", "null"]
Evaluator = Callable[[Any], Any]
"""Computes a value from an EvaluationContext, or converts a value."""

_KIND_NAMES: dict[Kind, str] = {
    "number": "a number",
    "text": "a string",
    "bytes": "a binary value",
    "truth": "a Boolean",
    "moment": "a timestamp",
    "null": "NULL",
}

_HINT = (
    "A condition is written as after WHERE in SQL: magpsf < 18 AND band IN ('g', 'r') AND name IS NOT NULL."
    " Put strings in single quotes, and names with special characters in double quotes."
)


class _Words(Dialect):
    """Standard SQL, with backticks as well as double quotes for identifiers.

    The parser has no functions of its own except CAST: each call keeps its name, which
    `_function` looks up in `_KNOWN`.
    """

    class Tokenizer(tokens.Tokenizer):
        IDENTIFIERS = ['"', "`"]  # noqa: RUF012  # the form that sqlglot expects
        # DEC is a type in other dialects, but a common name of a column. The others begin templates.
        KEYWORDS = {  # noqa: RUF012  # as above
            word: kind for word, kind in tokens.Tokenizer.KEYWORDS.items() if word not in ("DEC", "{%", "{{+", "{{-")
        }

    class Parser(parser.Parser):
        FUNCTIONS = {}  # noqa: RUF012  # as above
        NO_PAREN_FUNCTIONS = {}  # noqa: RUF012  # as above
        FUNCTION_PARSERS = {  # noqa: RUF012  # as above
            name: parse for name, parse in parser.Parser.FUNCTION_PARSERS.items() if name in ("CAST", "TRY_CAST")
        }


class TypedExpression(msgspec.Struct, frozen=True):
    """A compiled part of a condition and its kind. `run(frame)` returns an Arrow array or scalar.

    `literal` is the value of a constant. `floats` is true if the value may be floating point, and so NaN.
    """

    kind: Kind
    run: Evaluator
    floats: bool = False
    literal: Any = None


def parse(text: str) -> Any:
    """Parse one condition into a syntax tree. Raises BadInput for invalid text and over the limits."""
    if len(text.encode("utf-8", errors="surrogatepass")) > MAX_TEXT:
        raise BadInput("the condition is longer than 8 KiB", hint="Shorten it. For long lists, use a join in Spark.")
    if not text.strip() or "\0" in text:
        raise BadInput("the condition is empty or contains a NUL character", hint=_HINT)
    try:
        dialect = _Words()
        words = dialect.tokenize(text)
        if len(words) > MAX_TOKENS:
            raise BadInput(f"the condition has more than {MAX_TOKENS} tokens", hint="Shorten it.")
        if any(word.token_type.name == "SEMICOLON" for word in words):
            raise BadInput("the condition contains a semicolon: it must be one expression", hint=_HINT)
        tree = sqlglot.parse_one(text, into=exp.Condition, dialect=dialect)
    except SqlglotError as error:
        raise BadInput(f"the condition is not valid SQL: {_reason(error)}", hint=_HINT) from error
    except RecursionError as error:
        raise BadInput("the condition is nested too deeply", hint="Simplify it.") from error
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise BadInput("the condition is not valid SQL", hint=_HINT) from error
    _check_depth(tree)
    return tree


def _reason(error: SqlglotError) -> str:
    cause = getattr(error.__cause__, "errors", None) or getattr(error, "errors", None)
    if cause:
        first = cause[0]
        what = str(first.get("description") or "syntax error").rstrip(".")
        near = str(first.get("highlight"))[:40]
        return f"{what} (line {first.get('line', 1)}, column {first.get('col', 1)}, near {near!r})"
    return str(error).splitlines()[0][:120]


def _check_depth(tree: Any) -> None:
    """Raise BadInput for deeply nested conditions, to limit recursion. A chain of AND or of OR counts as one level."""
    stack = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise BadInput(
                "the condition is nested too deeply", hint="Simplify it. Chains of AND or of OR are not limited."
            )
        for child in node.iter_expressions():
            same = type(child) is type(node) and isinstance(node, exp.And | exp.Or)
            stack.append((child, depth if same else depth + 1))


class EvaluationContext:
    """One batch during the evaluation of a condition, with a cache of intermediate values.

    Operators that use an operand several times share its value through the cache. Otherwise
    nested operators would evaluate it exponentially often.
    """

    __slots__ = ("batch", "kept")

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.kept: dict[object, Any] = {}


def _shared(term: TypedExpression) -> TypedExpression:
    """The same term, evaluated at most once per batch."""
    if term.literal is not None:
        return term
    key, run = object(), term.run

    def once(frame: EvaluationContext) -> Any:
        if key not in frame.kept:
            frame.kept[key] = run(frame)
        return frame.kept[key]

    return TypedExpression(term.kind, once, term.floats)


class Compiler:
    """Compiles syntax trees for one Arrow schema. `used` collects the columns that are read."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self.used: dict[str, None] = {}
        self.wildcards = 0

    def condition(self, tree: Any) -> Evaluator:
        """A function that evaluates the condition on a batch: a Boolean array with nulls, one value per row.

        Raises BadInput, and so does the function if values cannot be computed.
        """
        term = self.term(tree)
        if term.kind not in ("truth", "null"):
            raise BadInput(f"the condition is {_KIND_NAMES[term.kind]}, not a Boolean", hint=_HINT)
        run = term.run

        def truth(batch: Any) -> Any:
            try:
                found = run(EvaluationContext(batch))
            except (pa.ArrowException, OverflowError) as error:
                raise BadInput(f"the condition cannot be evaluated on these rows: {error}") from error
            if isinstance(found, pa.Scalar):
                found = pa.array([found.as_py()] * batch.num_rows, pa.bool_())
            return found.cast(pa.bool_())

        return truth

    def term(self, node: Any) -> TypedExpression:
        """Compile a node. Raises BadInput for a node that is not allowed."""
        compile_node = _NODES.get(type(node))
        if compile_node is None:
            raise BadInput(f"{_shown(node)} is not allowed in a condition", hint=_HINT)
        if node.args.get("negate") and not isinstance(node, exp.Not):
            bare = node.copy()
            bare.set("negate", None)
            return _negation(self.term(bare))
        return compile_node(self, node)

    def terms(self, nodes: Sequence[Any]) -> list[TypedExpression]:
        return [self.term(node) for node in nodes]

    # --- leaves ---

    def column(self, node: Any) -> TypedExpression:
        """Compile a column, given by its name or dotted path."""
        path = _path_of(node)
        field, names = self._resolve(path)
        self.used[".".join(names)] = None
        load, kind, floats = _loader(field.type, ".".join(names))
        key = tuple(names)

        def run(frame: EvaluationContext) -> Any:
            if key not in frame.kept:
                array = frame.batch.column(names[0])
                for name in names[1:]:
                    array = pc.struct_field(array, name)
                frame.kept[key] = load(array)
            return frame.kept[key]

        return TypedExpression(kind, run, floats)

    def _resolve(self, path: list[str]) -> tuple[Any, list[str]]:
        whole = ".".join(path)
        if len(path) > 1 and whole in self._schema.names:
            return self._schema.field(whole), [whole]
        fields, names = list(self._schema), list[str]()
        field: Any = None
        for part in path:
            if field is not None:
                if not pa.types.is_struct(field.type):
                    raise BadInput(f"column {'.'.join(names)} has no fields", hint="Only records have fields.")
                fields = list(field.type)
            prefix = "".join(name + "." for name in names)
            found = find(prefix + part, [prefix + other for other in self._offered(fields)])[len(prefix) :]
            field = next(other for other in fields if other.name == found)
            names.append(found)
        return field, names

    @staticmethod
    def _offered(fields: list[Any]) -> list[str]:
        return [field.name for field in fields]


def _shown(node: Any) -> str:
    try:
        text = node.sql(dialect=_Words())
    except (SqlglotError, ValueError, AttributeError, RecursionError):
        text = ""
    return f"{type(node).__name__.upper()} ({text[:60]})" if text else type(node).__name__.upper()


def _path_of(node: Any) -> list[str]:
    if isinstance(node, exp.Identifier):
        return [str(node.this)]
    if isinstance(node, exp.Dot):
        return [*_path_of(node.this), *_path_of(node.expression)]
    if isinstance(node, exp.Column):
        _only(node, "this", "table", "db", "catalog")
        names = [str(part.this) for part in node.parts if isinstance(part, exp.Identifier)]
        if len(names) == len(node.parts):
            return names
    raise _refused(node)


def _refused(node: Any) -> BadInput:
    return BadInput(f"{_shown(node)} is not allowed in a condition", hint=_HINT)


def _only(node: Any, *known: str) -> None:
    """Raise BadInput for a node with parts other than `known`, which its compiler would ignore."""
    for name, value in node.args.items():
        if name not in known and name != "negate" and value not in (None, False, []):
            raise _refused(node)


_INTEGERS = (pa.types.is_int8, pa.types.is_int16, pa.types.is_int32, pa.types.is_int64)


def _loader(kind: Any, name: str) -> tuple[Evaluator, Kind, bool]:
    """A function that converts a column's arrays, the kind of its values, and whether they may be floating point."""
    types = pa.types
    if types.is_dictionary(kind):
        inner, own, floats = _loader(kind.value_type, name)
        return (lambda array: inner(array.cast(kind.value_type))), own, floats
    if types.is_boolean(kind):
        return (lambda array: array), "truth", False
    if types.is_integer(kind):
        return _load_integer, "number", types.is_uint64(kind)
    if types.is_floating(kind) or types.is_decimal(kind):
        return (lambda array: array.cast(pa.float64())), "number", True
    if types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view":
        return (lambda array: array.cast(pa.string())), "text", False
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return (lambda array: array.cast(pa.binary())), "bytes", False
    if types.is_timestamp(kind) or types.is_date(kind):
        return _moments, "moment", False
    if types.is_null(kind):
        return (lambda array: array), "null", False
    raise BadInput(
        f"column {name} has type {type_name(kind)[:80]}, which cannot be used in a condition",
        hint="Conditions can use numbers, strings, binary values, Booleans, dates, timestamps, and record fields by"
        " dotted path.",
    )


def _load_integer(array: Any) -> Any:
    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid:  # uint64 beyond 2**63
        return array.cast(pa.float64(), safe=False)


def _moments(array: Any) -> Any:
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("ms"))
    return array.cast(pa.timestamp("us", array.type.tz), safe=False).cast(pa.timestamp("us"))


# --- literals ---


def _constant(kind: Kind, value: Any, kind_of_arrow: Any) -> TypedExpression:
    scalar = pa.scalar(value, kind_of_arrow)
    return TypedExpression(kind, lambda _: scalar, floats=isinstance(value, float), literal=value)


def _literal(_: Compiler, node: Any) -> TypedExpression:
    if node.is_string:
        return _constant("text", str(node.this), pa.string())
    try:
        whole = int(node.this)
    except ValueError:
        whole = None
    if whole is not None and -(2**63) <= whole < 2**63:
        return _constant("number", whole, pa.int64())
    try:
        number = float(node.this)
    except ValueError:
        raise _refused(node) from None
    if not math.isfinite(number):
        raise BadInput(f"number {str(node.this)[:40]} is too large", hint="The largest number is 1.8e308.")
    return _constant("number", number, pa.float64())


def _null(_: Compiler, __: Any) -> TypedExpression:
    scalar = pa.scalar(None)
    return TypedExpression("null", lambda _: scalar)


def _boolean(_: Compiler, node: Any) -> TypedExpression:
    return _constant("truth", bool(node.this), pa.bool_())


def _paren(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this")
    return compiler.term(node.this)


# --- truth ---


def _truth(term: TypedExpression, where: str) -> Evaluator:
    if term.kind == "null":
        scalar = pa.scalar(None, pa.bool_())
        return lambda _: scalar
    if term.kind != "truth":
        raise BadInput(f"{where} needs a Boolean, not {_KIND_NAMES[term.kind]}", hint=_HINT)
    return term.run


def _chain(compiler: Compiler, node: Any) -> TypedExpression:
    """AND or OR with any number of operands."""
    name, join = ("AND", pc.and_kleene) if isinstance(node, exp.And) else ("OR", pc.or_kleene)
    parts = [_truth(compiler.term(part), name) for part in node.flatten(unnest=False)]

    def run(frame: EvaluationContext) -> Any:
        found = parts[0](frame)
        for part in parts[1:]:
            found = join(found, part(frame))
        return found

    return TypedExpression("truth", run)


def _negation(term: TypedExpression) -> TypedExpression:
    run = _truth(term, "NOT")
    return TypedExpression("truth", lambda frame: pc.invert(run(frame)))


def _not(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this")
    return _negation(compiler.term(node.this))


def _is(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this", "expression")
    what = node.expression
    term = compiler.term(node.this)
    run = term.run
    if isinstance(what, exp.Null):
        return TypedExpression("truth", lambda frame: pc.is_null(run(frame)))
    if isinstance(what, exp.Boolean):
        wanted, truth = bool(what.this), _truth(term, "IS")
        return TypedExpression("truth", lambda frame: pc.fill_null(pc.equal(truth(frame), wanted), False))
    if isinstance(what, exp.Column) and len(what.parts) == 1 and str(what.name).lower() == "nan":
        return _isnan_term(term)
    raise _refused(node)


def _isnan_term(term: TypedExpression) -> TypedExpression:
    run = _number(term, "IS NAN")
    return TypedExpression("truth", lambda frame: pc.fill_null(pc.is_nan(_as_float(run(frame))), False))


# --- comparisons ---


def _moment_of(text: str) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
        if moment.tzinfo is not None:
            moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise BadInput(
            f"{text[:40]!r} is not a date or time", hint="Write it as '2026-11-20' or '2026-11-20T12:00:00Z'."
        ) from error
    return moment


def _aligned(left: TypedExpression, right: TypedExpression, where: str) -> tuple[TypedExpression, TypedExpression]:
    """Both operands with the same kind: a string literal is converted if the other is a timestamp or binary."""
    if left.kind == right.kind or "null" in (left.kind, right.kind):
        return left, right
    for term, other, swap in ((left, right, False), (right, left, True)):
        if term.kind == "text" and isinstance(term.literal, str) and other.kind in ("moment", "bytes"):
            if other.kind == "moment":
                term = _constant("moment", _moment_of(term.literal), pa.timestamp("us"))
            else:
                term = _constant("bytes", term.literal.encode(), pa.binary())
            return (other, term) if swap else (term, other)
    raise BadInput(
        f"{where} compares {_KIND_NAMES[left.kind]} with {_KIND_NAMES[right.kind]}",
        hint="CAST one of them. Strings are written in single quotes.",
    )


def _comparable(left: Any, right: Any) -> tuple[Any, Any, bool]:
    """Two numeric values with comparable Arrow types, and whether they are floating point. Integers stay exact.

    Without this conversion, Arrow refuses to compare an integer above 2**53 with a floating-point number.
    """
    if pa.types.is_integer(left.type) and pa.types.is_integer(right.type):
        return left, right, False
    return _as_float(left), _as_float(right), True


def _less(left: Evaluator, right: Evaluator, kind: Kind) -> Evaluator:
    if kind != "number":
        return lambda frame: pc.less(left(frame), right(frame))

    def run(frame: EvaluationContext) -> Any:
        a, b, floats = _comparable(left(frame), right(frame))
        if not floats:
            return pc.less(a, b)
        return pc.or_kleene(pc.less(a, b), pc.and_kleene(pc.invert(pc.is_nan(a)), pc.is_nan(b)))

    return run


def _equal(left: Evaluator, right: Evaluator, kind: Kind) -> Evaluator:
    if kind != "number":
        return lambda frame: pc.equal(left(frame), right(frame))

    def run(frame: EvaluationContext) -> Any:
        a, b, floats = _comparable(left(frame), right(frame))
        if not floats:
            return pc.equal(a, b)
        return pc.or_kleene(pc.equal(a, b), pc.and_kleene(pc.is_nan(a), pc.is_nan(b)))

    return run


def compare(sign: str, left: TypedExpression, right: TypedExpression) -> TypedExpression:
    """Compile `left sign right` for =, <>, <, <=, >, >=. Each operand is evaluated once. Raises BadInput."""
    left, right = _aligned(left, right, sign)
    if "null" in (left.kind, right.kind):
        return _unknown(left, right)
    if left.kind in ("truth",) and sign not in ("=", "<>"):
        raise BadInput(f"Booleans cannot be compared with {sign}", hint="Use = or <> with Booleans.")
    a, b, kind = left.run, right.run, left.kind
    run = {
        "=": lambda: _equal(a, b, kind),
        "<>": lambda: _inverted(_equal(a, b, kind)),
        "<": lambda: _less(a, b, kind),
        ">": lambda: _less(b, a, kind),
        "<=": lambda: _inverted(_less(b, a, kind)),
        ">=": lambda: _inverted(_less(a, b, kind)),
    }[sign]()
    return TypedExpression("truth", run)


def _inverted(run: Evaluator) -> Evaluator:
    return lambda frame: pc.invert(run(frame))


def _unknown(*_: TypedExpression) -> TypedExpression:
    scalar = pa.scalar(None, pa.bool_())
    return TypedExpression("truth", lambda _: scalar)


_SIGNS = {exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">="}


def _comparison(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this", "expression")
    return compare(_SIGNS[type(node)], compiler.term(node.this), compiler.term(node.expression))


def _distinct(compiler: Compiler, node: Any) -> TypedExpression:
    """IS [NOT] DISTINCT FROM and <=>, for which NULL equals NULL."""
    _only(node, "this", "expression")
    left, right = (_shared(term) for term in compiler.terms([node.this, node.expression]))
    same = compare("=", left, right).run
    a, b = left.run, right.run

    def run(frame: EvaluationContext) -> Any:
        both = pc.and_(pc.is_null(a(frame)), pc.is_null(b(frame)))
        return pc.or_(pc.fill_null(same(frame), False), both)

    return TypedExpression("truth", run if isinstance(node, exp.NullSafeEQ) else _inverted(run))


def _between(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this", "low", "high")
    value, low, high = compiler.terms([node.this, node.args["low"], node.args["high"]])
    value = _shared(value)
    above, below = compare(">=", value, low).run, compare("<=", value, high).run
    return TypedExpression("truth", lambda frame: pc.and_kleene(above(frame), below(frame)))


def _in(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this", "expressions")
    value, items = _shared(compiler.term(node.this)), compiler.terms(node.expressions)
    if not items:
        raise BadInput("IN has an empty list", hint=_HINT)
    parts = [compare("=", value, item).run for item in items]

    def run(frame: EvaluationContext) -> Any:
        found = parts[0](frame)
        for part in parts[1:]:
            found = pc.or_kleene(found, part(frame))
        return found

    return TypedExpression("truth", run)


def _like(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this", "expression")
    value, pattern = compiler.term(node.this), compiler.term(node.expression)
    if "null" in (value.kind, pattern.kind):
        return _unknown(value, pattern)
    if value.kind not in ("text", "bytes") or not isinstance(pattern.literal, str):
        raise BadInput("LIKE needs a string column and a pattern in quotes", hint="For example: name LIKE 'NGC %'.")
    run, text = value.run, pattern.literal
    compiler.wildcards += text.count("%") + text.count("_")
    if compiler.wildcards > MAX_WILDCARDS:
        # The time per character grows with the number of wildcards: with thousands, a megabyte takes a minute.
        raise BadInput(
            f"the LIKE patterns of the condition have more than {MAX_WILDCARDS} wildcards (% and _)",
            hint="Use fewer wildcards.",
        )
    ignore_case = isinstance(node, exp.ILike)
    return TypedExpression("truth", lambda frame: pc.match_like(run(frame), text, ignore_case=ignore_case))


# --- arithmetic ---


def _number(term: TypedExpression, where: str) -> Evaluator:
    if term.kind == "null":
        scalar = pa.scalar(None, pa.float64())
        return lambda _: scalar
    if term.kind != "number":
        raise BadInput(
            f"{where} needs a number, not {_KIND_NAMES[term.kind]}",
            hint="CAST(column AS DOUBLE) converts a string to a number.",
        )
    return term.run


def _as_float(value: Any) -> Any:
    return value if pa.types.is_float64(value.type) else value.cast(pa.float64(), safe=False)


def _no_zero(value: Any) -> Any:
    return pc.if_else(pc.equal(value, pa.scalar(0, value.type)), pa.scalar(None, value.type), value)


def _remainder(left: Any, right: Any) -> Any:
    """left % right with the sign of left, as in Spark; NULL if right is zero."""
    right = _no_zero(right)
    if not (pa.types.is_integer(left.type) and pa.types.is_integer(right.type)):
        left, right = _as_float(left), _as_float(right)
        whole = pc.trunc(pc.divide(left, right))
    else:
        whole = pc.divide(left, right)
    return pc.subtract(left, pc.multiply(whole, right))


_ARITHMETIC: dict[type, tuple[str, Callable[[Any, Any], Any]]] = {
    exp.Add: ("+", pc.add),
    exp.Sub: ("-", pc.subtract),
    exp.Mul: ("*", pc.multiply),
    exp.Div: ("/", lambda a, b: pc.divide(_as_float(a), _no_zero(_as_float(b)))),
    exp.Mod: ("%", _remainder),
}


def _arithmetic(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this", "expression", "typed", "safe")
    sign, operate = _ARITHMETIC[type(node)]
    left, right = compiler.terms([node.this, node.expression])
    a, b = _number(left, sign), _number(right, sign)
    floats = left.floats or right.floats or sign == "/" or "null" in (left.kind, right.kind)
    return TypedExpression("number", lambda frame: operate(a(frame), b(frame)), floats=floats)


def _minus(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this")
    term = compiler.term(node.this)
    if isinstance(term.literal, int | float) and not isinstance(term.literal, bool):
        return _constant("number", -term.literal, pa.int64() if isinstance(term.literal, int) else pa.float64())
    run = _number(term, "-")
    return TypedExpression("number", lambda frame: pc.negate(run(frame)), floats=term.floats)


def _concat(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this", "expression", "safe")
    left, right = compiler.terms([node.this, node.expression])
    if {left.kind, right.kind} - {"text", "null"}:
        raise BadInput("|| needs strings", hint="CAST(column AS STRING) converts a number to a string.")
    a, b = _cast_null(left, pa.string()), _cast_null(right, pa.string())
    return TypedExpression("text", lambda frame: pc.binary_join_element_wise(a(frame), b(frame), ""))


def _cast_null(term: TypedExpression, kind: Any) -> Evaluator:
    if term.kind == "null":
        scalar = pa.scalar(None, kind)
        return lambda _: scalar
    return term.run


# --- CASE and functions ---

_ARROW: dict[Kind, Any] = {
    "text": pa.string(),
    "bytes": pa.binary(),
    "truth": pa.bool_(),
    "moment": pa.timestamp("us"),
    "number": pa.float64(),
    "null": pa.null(),
}


def _common(terms: Sequence[TypedExpression], where: str) -> tuple[Kind, Any, bool]:
    """The common kind of several terms (except NULL), its Arrow type, and whether it is floating point."""
    kinds = {term.kind for term in terms} - {"null"}
    if len(kinds) > 1:
        mixed = " and ".join(_KIND_NAMES[found] for found in sorted(kinds))
        raise BadInput(f"the values of {where} have different types: {mixed}", hint="CAST them to one type.")
    kind: Kind = kinds.pop() if kinds else "null"
    floats = any(term.floats or isinstance(term.literal, float) for term in terms)
    arrow = pa.int64() if kind == "number" and not floats else _ARROW[kind]
    return kind, arrow, floats


def _to(term: TypedExpression, arrow: Any) -> Evaluator:
    run = _cast_null(term, arrow)
    return lambda frame: run(frame).cast(arrow, safe=False)


def _case(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this", "ifs", "default")
    subject = None if node.args.get("this") is None else _shared(compiler.term(node.args["this"]))
    conditions, values = [], []
    for branch in node.args["ifs"]:
        _only(branch, "this", "true")
        if subject is None:
            conditions.append(_truth(compiler.term(branch.this), "CASE"))
        else:
            conditions.append(compare("=", subject, compiler.term(branch.this)).run)
        values.append(compiler.term(branch.args["true"]))
    default = node.args.get("default")
    otherwise = compiler.term(default) if default is not None else _null(compiler, None)
    kind, arrow, floats = _common([*values, otherwise], "CASE")
    runs, last = [_to(value, arrow) for value in values], _to(otherwise, arrow)

    def run(frame: EvaluationContext) -> Any:
        found = last(frame)
        for condition, value in zip(reversed(conditions), reversed(runs), strict=True):
            found = pc.if_else(pc.fill_null(condition(frame), False), value(frame), found)
        return found

    return TypedExpression(kind, run, floats)


def _positive(value: Any) -> Any:
    value = _as_float(value)
    return pc.if_else(pc.less_equal(value, 0.0), pa.scalar(None, pa.float64()), value)


_OF_ONE_NUMBER: dict[str, tuple[Callable[[Any], Any], bool | None]] = {
    # function, and whether its result is floating point (None: like its argument)
    "abs": (pc.abs, None),
    "sqrt": (lambda x: pc.sqrt(_as_float(x)), True),
    "exp": (lambda x: pc.exp(_as_float(x)), True),
    "ln": (lambda x: pc.ln(_positive(x)), True),
    "log10": (lambda x: pc.log10(_positive(x)), True),
    "floor": (lambda x: pc.floor(_as_float(x)), True),
    "ceil": (lambda x: pc.ceil(_as_float(x)), True),
}
_OF_ONE_TEXT: dict[str, Callable[[Any], Any]] = {"lower": pc.utf8_lower, "upper": pc.utf8_upper}
_KNOWN = sorted([*_OF_ONE_NUMBER, *_OF_ONE_TEXT, "coalesce", "isnan", "length", "nullif", "power", "round"])
_SAME = {"pow": "power", "ceiling": "ceil", "is_nan": "isnan", "len": "length", "char_length": "length"}


def _function(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this", "expressions")
    name = str(node.this).lower()
    name = _SAME.get(name, name)
    if name not in _KNOWN:
        raise BadInput(f"function {name[:40]} is not allowed in a condition", hint=f"Allowed are {', '.join(_KNOWN)}.")
    terms = compiler.terms(node.expressions)
    low, high = {"coalesce": (1, 64), "power": (2, 2), "nullif": (2, 2), "round": (1, 2)}.get(name, (1, 1))
    if not low <= len(terms) <= high:
        count = f"{low}" if low == high else f"{low} to {high}"
        raise BadInput(f"{name} needs {count} argument{'' if count == '1' else 's'}, not {len(terms)}", hint=_HINT)
    return _call(name, terms)


def _call(name: str, terms: list[TypedExpression]) -> TypedExpression:
    first = terms[0]
    if name in _OF_ONE_NUMBER:
        operate, floats = _OF_ONE_NUMBER[name]
        number = _number(first, name)
        return TypedExpression(
            "number", lambda frame: operate(number(frame)), first.floats if floats is None else floats
        )
    if name in _OF_ONE_TEXT:
        change = _OF_ONE_TEXT[name]
        text = _text(first, name)
        return TypedExpression("text", lambda frame: change(text(frame)))
    if name == "isnan":
        return _isnan_term(first)
    if name == "length":
        measure = pc.binary_length if first.kind == "bytes" else pc.utf8_length
        run = first.run if first.kind == "bytes" else _text(first, name)
        return TypedExpression("number", lambda frame: measure(run(frame)).cast(pa.int64()))
    if name == "power":
        base, power = _number(first, name), _number(terms[1], name)
        return TypedExpression(
            "number", lambda frame: pc.power(_as_float(base(frame)), _as_float(power(frame))), floats=True
        )
    if name == "round":
        return _round(terms)
    if name == "nullif":
        return _nullif(first, terms[1])
    kind, arrow, floats = _common(terms, "COALESCE")
    runs = [_to(term, arrow) for term in terms]
    return TypedExpression(kind, lambda frame: pc.coalesce(*(run(frame) for run in runs)), floats)


def _text(term: TypedExpression, where: str) -> Evaluator:
    if term.kind not in ("text", "null"):
        raise BadInput(
            f"{where} needs a string, not {_KIND_NAMES[term.kind]}",
            hint="CAST(column AS STRING) converts a number to a string.",
        )
    return _cast_null(term, pa.string())


def _round(terms: list[TypedExpression]) -> TypedExpression:
    digits = terms[1].literal if len(terms) == 2 else 0
    if not isinstance(digits, int) or not -30 <= digits <= 30:
        raise BadInput("the second argument of round must be an integer from -30 to 30", hint="Example: round(mag, 1).")
    run = _number(terms[0], "round")
    return TypedExpression(
        "number",
        lambda frame: pc.round(_as_float(run(frame)), ndigits=digits, round_mode="half_towards_infinity"),
        floats=True,
    )


def _nullif(value: TypedExpression, other: TypedExpression) -> TypedExpression:
    value = _shared(value)
    same, run = compare("=", value, other).run, value.run

    def nullif(frame: EvaluationContext) -> Any:
        found = run(frame)
        return pc.if_else(pc.fill_null(same(frame), False), pa.scalar(None, found.type), found)

    return TypedExpression(value.kind, nullif, value.floats)


# --- casts ---

_TARGETS: dict[str, Kind] = {
    **dict.fromkeys(("TINYINT", "SMALLINT", "INT", "MEDIUMINT", "BIGINT"), "number"),
    **dict.fromkeys(("FLOAT", "DOUBLE", "DECIMAL"), "number"),
    **dict.fromkeys(("TEXT", "VARCHAR", "CHAR", "NVARCHAR", "NCHAR"), "text"),
    **dict.fromkeys(("DATE", "TIMESTAMP", "DATETIME", "TIMESTAMPTZ", "TIMESTAMPNTZ"), "moment"),
    "BOOLEAN": "truth",
}
_BITS = {"TINYINT": 8, "SMALLINT": 16, "INT": 32, "MEDIUMINT": 32, "BIGINT": 64}
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


def _cast(compiler: Compiler, node: Any) -> TypedExpression:
    _only(node, "this", "to", "safe")
    name = node.args["to"].this.name if isinstance(node.args["to"].this, exp.DataType.Type) else ""
    target = _TARGETS.get(name)
    if target is None or node.args["to"].args.get("nested"):
        raise _refused(node)
    term = compiler.term(node.this)
    if target == "moment":
        return _cast_moment(term, name)
    if term.kind in ("moment", "bytes") or (term.kind, target) == ("truth", "text"):
        raise BadInput(f"{_KIND_NAMES[term.kind]} cannot be cast to {name}", hint="Use the value without CAST.")
    bits = _BITS.get(name)
    run = term.run
    convert = _caster(term.kind, target, bits)
    return TypedExpression(target, lambda frame: convert(run(frame)), floats=target == "number" and bits is None)


def _caster(kind: Kind, target: Kind, bits: int | None) -> Evaluator:
    if kind == "null":
        return lambda value: value.cast(_ARROW[target])
    if target == "text":
        return lambda value: value.cast(pa.string())
    if target == "truth":
        if kind == "truth":
            return lambda value: value
        if kind == "number":
            return lambda value: pc.not_equal(value, pa.scalar(0, value.type))
        return lambda value: _each(value, _truth_of, pa.bool_())
    if kind == "text":
        if bits is not None:
            return lambda value: _to_integer(_each(value, _integer_of, pa.int64()), bits)
        return lambda value: _each(value, _float_of, pa.float64())
    if bits is None:
        return lambda value: value.cast(pa.float64(), safe=False)
    return lambda value: _to_integer(value, bits)


def _to_integer(value: Any, bits: int) -> Any:
    """Truncate towards zero; NULL if the result does not fit into `bits` bits."""
    if pa.types.is_boolean(value.type):
        return value.cast(pa.int64())
    limit = 2 ** (bits - 1)
    if pa.types.is_floating(value.type):
        value = pc.trunc(value)
        fits = pc.and_(pc.greater_equal(value, float(-limit)), pc.less(value, float(limit)))
    else:
        fits = pc.and_(pc.greater_equal(value, -limit), pc.less_equal(value, limit - 1))
    kept = pc.if_else(pc.fill_null(fits, False), value, pa.scalar(None, value.type))
    return kept.cast(pa.int64())


def _each(value: Any, change: Callable[[str], Any], arrow: Any) -> Any:
    """Apply `change` to every string that is not NULL. `change` returns None for a string that cannot be converted."""
    if isinstance(value, pa.Scalar):
        plain = value.as_py()
        return pa.scalar(None if plain is None else change(plain), arrow)
    return pa.array([None if item is None else change(item) for item in value.to_pylist()], arrow)


def _float_of(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _integer_of(text: str) -> int | None:
    try:
        whole = None if "_" in text or len(text) > 40 else int(text)
    except ValueError:
        number = _float_of(text)
        whole = int(number) if number is not None and math.isfinite(number) else None
    return whole if whole is not None and -(2**63) <= whole < 2**63 else None


def _truth_of(text: str) -> bool | None:
    word = text.strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None


def _cast_moment(term: TypedExpression, name: str) -> TypedExpression:
    day = name == "DATE"
    if isinstance(term.literal, str):
        moment = _moment_of(term.literal)
        if day:
            moment = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        return _constant("moment", moment, pa.timestamp("us"))
    if term.kind not in ("moment", "text", "null"):
        raise BadInput(f"{_KIND_NAMES[term.kind]} cannot be cast to {name}", hint="Compare Julian dates as numbers.")
    run = _cast_null(term, pa.timestamp("us"))
    if term.kind == "text":
        texts = term.run
        run = lambda frame: _each(texts(frame), _moment_or_none, pa.timestamp("us"))  # noqa: E731
    if not day:
        return TypedExpression("moment", run)
    return TypedExpression("moment", lambda frame: pc.floor_temporal(run(frame), unit="day"))


def _moment_or_none(text: str) -> datetime.datetime | None:
    try:
        return _moment_of(text)
    except BadInput:
        return None


_NODES: dict[type, Callable[[Compiler, Any], TypedExpression]] = {
    exp.Column: Compiler.column,
    exp.Dot: Compiler.column,
    exp.Literal: _literal,
    exp.Null: _null,
    exp.Boolean: _boolean,
    exp.Paren: _paren,
    exp.And: _chain,
    exp.Or: _chain,
    exp.Not: _not,
    exp.Is: _is,
    **dict.fromkeys(_SIGNS, _comparison),
    exp.NullSafeEQ: _distinct,
    exp.NullSafeNEQ: _distinct,
    exp.Between: _between,
    exp.In: _in,
    exp.Like: _like,
    exp.ILike: _like,
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
    exp.Neg: _minus,
    exp.DPipe: _concat,
    exp.Case: _case,
    exp.Anonymous: _function,
    exp.Cast: _cast,
    exp.TryCast: _cast,
}


def keep(mask: Any) -> Any:
    """Replace NULL by false in the result of a condition."""
    return pc.fill_null(mask, False)
