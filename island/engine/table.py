"""SQL statements. Results and errors have the same JSON form as in Livy."""

from __future__ import annotations

import datetime
import decimal
import json
from typing import Any

from island.engine.shell import plain
from island.livy.messages import Output

MAX_FRAMES = 200


def run_sql(spark: Any, code: str, number: int, rows: int) -> Output:
    """Run one SQL statement and return at most `rows` rows of its result. Raises only `StatementCancelled`."""
    try:
        frame = spark.sql(code.strip().removesuffix(";") if code.rstrip().endswith(";") else code)
        schema = json.loads(frame.schema.json())
        taken = frame.take(rows) if schema["fields"] else []
        data = [[cell(value, field.dataType) for value, field in zip(row, frame.schema, strict=True)] for row in taken]
        result = {"schema": schema, "data": data}
    except Exception as error:  # noqa: BLE001 - any error of the statement is its result
        return sql_error(error, number)
    return Output("ok", number, data={"application/json": result})


def cell(value: Any, kind: Any) -> Any:
    """One value in Livy's JSON form. `kind` is its Spark type, which distinguishes structs from maps."""
    name = kind.typeName()
    if value is None:
        return None
    if name == "struct":
        # Livy encodes a nested row as a Scala object, and clients expect this form.
        fields = [
            {"name": f.name, "dataType": {}, "nullable": f.nullable, "metadata": {"map": plain(f.metadata)}}
            for f in kind.fields
        ]
        return {
            "schema": fields,
            "values": [cell(item, f.dataType) for item, f in zip(value, kind.fields, strict=True)],
        }
    if name == "array":
        return [cell(item, kind.elementType) for item in value]
    if name == "map":
        return {_key(key): cell(item, kind.valueType) for key, item in value.items()}
    if name == "binary":
        return [byte - 256 if byte > 127 else byte for byte in value]
    if isinstance(value, datetime.datetime):
        utc = value.astimezone(datetime.UTC)
        return utc.strftime("%Y-%m-%dT%H:%M:%S") + (f".{utc.microsecond // 1000:03d}" if utc.microsecond else "") + "Z"
    if isinstance(value, datetime.timedelta):
        return str(value)
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() and name.startswith("decimal") else float(value)
    return plain(value)


def _key(key: Any) -> str:
    """The key of a map as a string."""
    return key if isinstance(key, str) else json.dumps(plain(key))


def sql_error(error: Exception, number: int) -> Output:
    """The output of a failed SQL statement. Its name is always Error; text and frames are those of Spark."""
    java = getattr(error, "_origin", None) or getattr(error, "java_exception", None)
    if java is None:
        return Output("error", number, ename="Error", evalue=str(error), traceback=[])
    text = java.getMessage()
    frames = java.getStackTrace()
    lines = [frames[i].toString() for i in range(min(len(frames), MAX_FRAMES))]
    return Output("error", number, ename="Error", evalue=str(text), traceback=lines)
