"""A Livy server without Spark, for tests of its clients: sessions are idle and statements end at once.

The statement `stay` runs until it is cancelled.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from island.livy.rest import JSON_HEADERS

OUTPUT = {"status": "ok", "execution_count": 0, "data": {"text/plain": "2"}}
TABLE = {
    "schema": {"type": "struct", "fields": [{"name": "n", "type": "long", "nullable": False, "metadata": {}}]},
    "data": [[7]],
}
ERROR = {"status": "error", "execution_count": 0, "ename": "ValueError", "evalue": "boom", "traceback": ["boom\n"]}
OUTPUTS = {
    "table": {"status": "ok", "execution_count": 0, "data": {"application/json": TABLE}},
    "fail": ERROR,
}


def upstream() -> web.Application:
    """The application of a Livy server without Spark."""
    counts: dict[str, int] = {"session": 0}
    statements: dict[int, int] = {}

    def session(number: int) -> dict[str, Any]:
        return {"id": number, "state": "idle", "kind": "pyspark", "log": ["stdout: ", "\nstderr: "]}

    codes: dict[tuple[int, int], str] = {}
    cancelled: set[tuple[int, int]] = set()

    def statement(session: int, number: int) -> dict[str, Any]:
        code = codes[session, number]
        if code == "stay":
            state = "cancelled" if (session, number) in cancelled else "running"
            return {"id": number, "code": code, "state": state, "output": None, "progress": 0.0}
        output = OUTPUTS.get(code, OUTPUT)
        return {"id": number, "code": code, "state": "available", "output": output, "progress": 1.0}

    async def version(_: web.Request) -> web.Response:
        return reply({"version": "0.9.0-incubating"})

    async def create(_: web.Request) -> web.Response:
        counts["session"] += 1
        statements[counts["session"] - 1] = 0
        return reply(session(counts["session"] - 1), 201)

    async def show(request: web.Request) -> web.Response:
        return reply(session(int(request.match_info["id"])))

    async def post(request: web.Request) -> web.Response:
        number = int(request.match_info["id"])
        statements[number] = statements.get(number, 0) + 1
        codes[number, statements[number] - 1] = (await request.json())["code"]
        return reply(statement(number, statements[number] - 1), 201)

    async def one(request: web.Request) -> web.Response:
        return reply(statement(int(request.match_info["id"]), int(request.match_info["n"])))

    async def cancel(request: web.Request) -> web.Response:
        cancelled.add((int(request.match_info["id"]), int(request.match_info["n"])))
        return reply({"msg": "canceled"})

    def reply(body: Any, status: int = 200) -> web.Response:
        return web.Response(body=json.dumps(body).encode(), status=status, headers=JSON_HEADERS)

    app = web.Application()
    app.add_routes(
        [
            web.get("/version", version),
            web.post("/sessions", create),
            web.get("/sessions/{id}", show),
            web.delete("/sessions/{id}", show),
            web.post("/sessions/{id}/statements", post),
            web.get("/sessions/{id}/statements/{n}", one),
            web.post("/sessions/{id}/statements/{n}/cancel", cancel),
        ]
    )
    return app
