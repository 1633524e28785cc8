"""Fetches the long outputs that the report of an executor refers to, before the report is stored."""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from island.errors import PeerRefused, Unreachable
from island.jobs import core
from island.jobs.messages import JobReport, ResultRef, ResultRequest, StatementReport
from island.jobs.results import BLOCK, ResultStore
from island.kernel import codec
from island.kernel.codec import Malformed
from island.kernel.ids import IslandId
from island.kernel.ports import BulkStream, Peers
from island.kernel.units import format_bytes

log = structlog.get_logger("island")

RESULT_BULK = "job-result"
"""Kind of the bulk stream."""

STALL_S = 60.0
"""Seconds within which the executor must send a block; then the rest is asked for again."""

_LEAST = 1024
"""Minimum size of a block in bytes, but for the last: many small ones would cost this island more than their sender."""


class ResultFetcher:
    """The results of executors. `limit` is the maximum size of one in bytes.

    What has arrived is kept when a stream ends early, and the next attempt continues there.
    """

    def __init__(self, peers: Peers, results: ResultStore, limit: int) -> None:
        self._peers, self._results, self._limit = peers, results, limit

    async def collected(self, executor: IslandId, report: JobReport) -> JobReport:
        """The report, once every result that it refers to is stored here and pinned for the job.

        A result that cannot be had is replaced by an error. Raises `Unreachable` and `PeerRefused` if the executor
        does not send it now, `PeerMisbehaved`, and `OSError` if this island's disk fails.
        """
        if all(each.result is None for each in report.statements):
            return report
        statements = [await self._collected(executor, report, each) for each in report.statements]
        return msgspec.structs.replace(report, statements=tuple(statements))

    async def _collected(self, executor: IslandId, report: JobReport, statement: StatementReport) -> StatementReport:
        ref = statement.result
        if ref is None:
            return statement
        if ref.size > self._limit:
            text = f"the result has {format_bytes(ref.size)}; the limit is {format_bytes(self._limit)}"
            return _failed(statement, "ResultTooLarge", f"{text} (jobs.max_result of the job's home). Select less")
        if await self._results.adopt(report.job, ref):
            return statement
        if executor == self._peers.me:
            return _failed(statement, "ResultLost", "the file of the result was removed from HOME/results")
        try:
            problem = await self._fetched(executor, report, ref)
        except PeerRefused as error:
            if error.code != "result_lost":
                raise
            return _failed(statement, "ResultLost", f"the executor no longer has the result: {error.message}")
        return _failed(statement, "ResultLost", f"the result is damaged: {problem}") if problem else statement

    async def _fetched(self, executor: IslandId, report: JobReport, ref: ResultRef) -> str:
        """Fetch a result, or its rest. Returns what is wrong with it, or ""."""
        begun = await self._results.received(report.job, ref)
        if begun < ref.size:
            request = ResultRequest(job=report.job, epoch=report.epoch, hash=ref.hash, offset=begun)
            async with self._peers.bulk(executor, RESULT_BULK, codec.encode(request)) as stream:
                await self._take(stream, report.job, ref, begun)
        problem = await self._results.complete(report.job, ref, core.output_problem)
        if problem and begun:
            raise Unreachable(f"the parts of a result do not fit: {problem}", hint="It is fetched again.")
        log.info("jobs.result_fetched", job=report.job, size=ref.size, begun=begun, problem=problem)
        return problem

    async def _take(self, stream: BulkStream, job: str, ref: ResultRef, offset: int) -> None:
        """Store the blocks of a stream. Raises `Unreachable` if it ends early; what has arrived is stored then too."""
        waiting, size = list[bytes](), 0
        try:
            while offset + size < ref.size:
                block = await _block(stream)
                if len(block) < min(_LEAST, ref.size - offset - size) or offset + size + len(block) > ref.size:
                    raise Malformed("a block of a result has a wrong size")
                waiting.append(block)
                size += len(block)
                if size >= BLOCK:
                    await self._results.append(job, ref, offset, b"".join(waiting))
                    offset, waiting, size = offset + size, [], 0
        finally:
            if waiting:
                await self._results.append(job, ref, offset, b"".join(waiting))


async def _block(stream: BulkStream) -> bytes:
    try:
        async with asyncio.timeout(STALL_S):
            block = await stream.receive()
    except TimeoutError as error:
        text = f"no block of a result arrived for {STALL_S:.0f} s"
        raise Unreachable(text, hint="The rest is asked for again.") from error
    if block is None:
        raise Unreachable("the result was incomplete", hint="The rest is asked for again.")
    return block


def _failed(statement: StatementReport, name: str, text: str) -> StatementReport:
    return msgspec.structs.replace(statement, result=None, output=core.error_output(name, text))
