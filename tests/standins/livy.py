"""A Livy server without Spark, for tests of its clients: sessions are idle and statements end at once.

The statement `stay` runs until it is cancelled. `1+1` gives 2, and other code gives its own text, so that a result
shows which statement it belongs to. Like Livy, it does not know sessions and statements that were not created.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from aiohttp import web

from island.livy.rest import JSON_HEADERS

TABLE = {
    "schema": {"type": "struct", "fields": [{"name": "n", "type": "long", "nullable": False, "metadata": {}}]},
    "data": [[7]],
}
ERROR = {"status": "error", "execution_count": 0, "ename": "ValueError", "evalue": "boom", "traceback": ["boom\n"]}


def output_of(code: str, number: int) -> dict[str, Any]:
    """Livy's output object for the statement `number` with this code."""
    if code == "fail":
        return {**ERROR, "execution_count": number}
    data = {"application/json": TABLE} if code == "table" else {"text/plain": "2" if code == "1+1" else f"ran {code}"}
    return {"status": "ok", "execution_count": number, "data": data}


def upstream() -> web.Application:
    """The application of a Livy server without Spark."""
    sessions: dict[int, list[str]] = {}
    """The code of the statements of each live session."""
    names: dict[str, int] = {}
    created = itertools.count()
    cancelled: set[tuple[int, int]] = set()

    def session(number: int) -> dict[str, Any]:
        name = next((name for name, id in names.items() if id == number), None)
        return {"id": number, "name": name, "state": "idle", "kind": "pyspark", "log": ["stdout: ", "\nstderr: "]}

    def statement(session: int, number: int) -> dict[str, Any]:
        code = sessions[session][number]
        if code == "stay":
            state = "cancelled" if (session, number) in cancelled else "running"
            return {"id": number, "code": code, "state": state, "output": None, "progress": 0.0}
        return {"id": number, "code": code, "state": "available", "output": output_of(code, number), "progress": 1.0}

    def named(request: web.Request) -> int:
        key = request.match_info["id"]
        number = int(key) if key.isdigit() else names.get(key, -1)
        if number not in sessions:
            raise unknown(f"Session '{key}' not found.")
        return number

    def named_statement(request: web.Request) -> tuple[int, int]:
        session, number = named(request), int(request.match_info["n"])
        if number >= len(sessions[session]):
            raise unknown("Statement not found")
        return session, number

    async def version(_: web.Request) -> web.Response:
        return reply({"version": "0.9.0-incubating"})

    async def create(request: web.Request) -> web.Response:
        number = next(created)
        sessions[number] = []
        if name := (await request.json()).get("name"):
            names[name] = number
        return reply(session(number), 201)

    async def show(request: web.Request) -> web.Response:
        return reply(session(named(request)))

    async def delete(request: web.Request) -> web.Response:
        del sessions[named(request)]
        return reply({"msg": "deleted"})

    async def post(request: web.Request) -> web.Response:
        number = named(request)
        sessions[number].append((await request.json())["code"])
        return reply(statement(number, len(sessions[number]) - 1), 201)

    async def one(request: web.Request) -> web.Response:
        return reply(statement(*named_statement(request)))

    async def cancel(request: web.Request) -> web.Response:
        cancelled.add(named_statement(request))
        return reply({"msg": "canceled"})

    def reply(body: Any, status: int = 200) -> web.Response:
        return web.Response(body=json.dumps(body).encode(), status=status, headers=JSON_HEADERS)

    def unknown(message: str) -> web.HTTPException:
        return web.HTTPNotFound(text=json.dumps({"msg": message}), headers=JSON_HEADERS)

    app = web.Application()
    app.add_routes(
        [
            web.get("/version", version),
            web.post("/sessions", create),
            web.get("/sessions/{id}", show),
            web.delete("/sessions/{id}", delete),
            web.post("/sessions/{id}/statements", post),
            web.get("/sessions/{id}/statements/{n}", one),
            web.post("/sessions/{id}/statements/{n}/cancel", cancel),
        ]
    )
    return app
