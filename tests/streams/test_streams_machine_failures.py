"""A machine that fails while a file is read: the file is delivered later, and until then `source ls` shows why."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import pyarrow.parquet as pq
import pytest

from island.errors import IslandError, OverLimit
from island.kernel.process_messages import Emit
from island.kernel.processes import DEFAULT_LIMITS, InPlaceProcesses, Limits, ProcessDied, Stalled
from island.streams import core
from island.streams.source import FolderSource
from tests.islands.subscribing import ALPHA, Home, Running, running, until, write
from tests.standins.peers import Wire
from tests.streams.test_streams_processes import SlowClock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def died(*, crashed: bool) -> ProcessDied:
    error = ProcessDied("the process that read it was ended")
    error.crashed = crashed
    return error


class FailingProcesses(InPlaceProcesses):
    """The first calls fail with these errors."""

    def __init__(self, *errors: IslandError) -> None:
        self.errors = list(errors)

    async def stream(
        self, function: Callable[[Emit[T], *Ts], None], /, *args: *Ts, limits: Limits = DEFAULT_LIMITS
    ) -> AsyncGenerator[T, None]:
        if self.errors:
            raise self.errors.pop(0)
        async for item in super().stream(function, *args, limits=limits):
            yield item


async def _watched(alpha: Running, *errors: IslandError) -> FolderSource:
    alpha.clock, alpha.processes = SlowClock(), FailingProcesses(*errors)
    return await alpha.watch()


async def _later(source: FolderSource, condition: Callable[[], bool]) -> None:
    """Wait until a condition is true, while the clock advances by more than the longest pause between two attempts."""

    def advanced() -> bool:
        assert isinstance(source._clock, SlowClock)
        source._clock.late += 61.0
        source.wake.set()
        return condition()

    await until(advanced)


def _rows(alpha: Running) -> int:
    return alpha.records["alerts"].rows if "alerts" in alpha.records else 0


@pytest.mark.parametrize("error", [died(crashed=False), Stalled("no progress")], ids=["killed", "stalled"])
async def test_a_file_is_delivered_after_the_machine_has_ended_its_reader(tmp_path: Path, error: IslandError) -> None:
    home = Home(tmp_path / "alpha")
    write(home, "one", 0, 10)
    async with running(home, Wire(), ALPHA) as alpha:
        source = await _watched(alpha, *[error] * (2 * core.MAX_CRASHES))
        # The record follows the problem in memory with a commit.
        await until(lambda: "alerts" in alpha.records and error.message in alpha.records["alerts"].problem)
        assert error.message in source.problem
        await _later(source, lambda: _rows(alpha) == 10 and not source.problem)


@pytest.mark.parametrize("error", [died(crashed=True), OverLimit("it takes too much")], ids=["crashed", "limit"])
async def test_a_file_that_ends_its_reader_is_set_aside_after_some_times(tmp_path: Path, error: IslandError) -> None:
    home = Home(tmp_path / "alpha")
    write(home, "one", 0, 10)
    async with running(home, Wire(), ALPHA) as alpha:
        source = await _watched(alpha, *[error] * core.MAX_CRASHES)
        await _later(source, lambda: bool(source._resting) and source._resting["one.parquet"].tried)
        assert error.message in source.problem
        assert isinstance(source._processes, FailingProcesses) and not source._processes.errors
        write(home, "two", 100, 5)
        await _later(source, lambda: _rows(alpha) == 5)
        assert set(source._resting) == {"one.parquet"}


async def test_a_file_is_delivered_after_a_read_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "alpha")
    write(home, "one", 0, 10)
    write(home, "two", 100, 10)
    broken = True
    original = pq.ParquetFile.iter_batches

    def iter_batches(file: Any, *args: Any, **more: Any) -> Any:
        if broken and file.metadata.num_rows == 10:
            raise OSError(errno.EIO, "Input/output error")
        return original(file, *args, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    async with running(home, Wire(), ALPHA) as alpha:
        source = await _watched(alpha)
        await until(lambda: "one.parquet cannot be read: Input/output error" in source.problem)
        broken = False
        await _later(source, lambda: _rows(alpha) == 20 and not source.problem)
