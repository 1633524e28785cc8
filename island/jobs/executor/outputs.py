"""Outputs of statements at the executor: long ones are kept as files, and sent to homes that ask for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from island.errors import EngineFailed, NotFound, Unreachable
from island.jobs import core
from island.jobs.executor import store as run_store
from island.jobs.messages import MAX_INLINE, MAX_OUTPUT, ResultRef, ResultRequest, StatementReport
from island.jobs.results import ResultStore
from island.kernel import codec
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.ports import BulkStream
from island.kernel.units import format_bytes
from island.kernel.work import Workers
from island.livy.messages import STATEMENT_ENDED

Shown = Mapping[str, Any] | None
"""What an engine shows of a statement; None if it has none."""

STALL_S = 60.0
"""Seconds within which a home must take a block of a result; then it has to ask again."""


class StatementOutputs:
    """The long outputs of the statements of all runs. `limit` is the maximum size of an output in bytes."""

    def __init__(self, results: ResultStore, workers: Workers, limit: int) -> None:
        self._results, self._workers, self._limit = results, workers, limit

    async def kept(self, owner: str, view: Shown) -> tuple[Shown, ResultRef | None]:
        """What an engine shows of a statement, with a long output replaced by the reference to its file.

        An output over the limit is replaced by an error. Raises `OSError` if the disk fails, and `EngineFailed` for a
        long output that is not Livy's.
        """
        if view is None or view.get("state") not in STATEMENT_ENDED or view.get("output") is None:
            return view, None
        data = encoded(view["output"])
        if len(data) <= MAX_INLINE:
            return view, None
        if len(data) > self._limit:
            text = f"the result has {format_bytes(len(data))}; the limit is {format_bytes(self._limit)}"
            hint = "Select less, write it to a file, or ask for a higher jobs.max_result"
            return {**view, "output": msgspec.json.decode(core.error_output("ResultTooLarge", f"{text}. {hint}"))}, None
        if problem := await self._workers.cpu(core.output_problem, data):
            raise EngineFailed(f"the engine's answer cannot be used: the output of a statement: {problem}")
        return {**view, "output": None}, await self._results.keep(owner, data)

    async def inlined(self, report: StatementReport) -> StatementReport:
        """A report for a home of an earlier version, which cannot fetch outputs."""
        ref = report.result
        if ref is None:
            return report
        if ref.size > MAX_OUTPUT:
            text = f"the result has {format_bytes(ref.size)}, and the home of this job takes {format_bytes(MAX_OUTPUT)}"
            output = core.error_output("ResultTooLarge", f"{text}. Select less, or upgrade island at the home")
        else:
            try:
                output = (await self._results.read(ref)).decode()
            except NotFound as error:
                output = core.error_output("ResultLost", error.message)
        return msgspec.structs.replace(report, output=output, result=None)


class ResultServer:
    """Sends results to the homes of their runs, in blocks."""

    def __init__(self, state: Database, results: ResultStore, heard: Callable[[str, int], None]) -> None:
        """`heard(job, epoch)` is called while a home takes the blocks of a result, which renews its lease."""
        self._state, self._results, self._heard = state, results, heard

    async def serve(self, sender: IslandId, opening: bytes, stream: BulkStream) -> None:
        """Answer a bulk stream of kind `job-result`. Raises `NotFound` for a result that the home may not have."""
        request = codec.decode(opening, ResultRequest)
        run = await self._state.read(lambda conn: run_store.get(conn, request.job, request.epoch))
        ref = None if run is None or run.statement is None else run.statement.result
        if run is None or run.home != sender or ref is None or ref.hash != request.hash:
            raise NotFound("this island has no such result for you", code="result_lost")
        async for block in self._results.blocks(ref, request.offset):
            self._heard(request.job, request.epoch)
            for start in range(0, len(block), codec.BULK_LIMIT):
                await _sent(stream, block[start : start + codec.BULK_LIMIT])
        await stream.finish()


async def _sent(stream: BulkStream, block: bytes) -> None:
    try:
        async with asyncio.timeout(STALL_S):
            await stream.send(block)
    except TimeoutError as error:
        raise Unreachable(f"no block of the result was taken for {STALL_S:.0f} s", hint="Ask for the rest.") from error


def encoded(output: Any) -> bytes:
    """Livy's output object as JSON. Lone surrogates, which JSON in UTF-8 cannot have, become `?`."""
    try:
        return msgspec.json.encode(output)
    except UnicodeEncodeError:
        return core.compact_json(output).encode("utf-8", "replace")
