"""What all tests share: the real data beside the checkout, and how a missing one is reported."""

from __future__ import annotations

import logging
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.missing import missing

REPOSITORY = Path(__file__).resolve().parent.parent

# Tests start hundreds of Python processes. With this variable, which images of containers often set, each of them would
# compile every module of this project again: a third of its processor time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets, `../shared/data`; a missing one fails in CI and skips elsewhere."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        reason = f"{folder} is absent: lay the real datasets there to run this test"
        missing(reason)
    return folder


def pytest_configure() -> None:
    """Log plainly, as a traceback in the colours of a terminal takes 60 ms and simulated faults cause many.

    Log lines go to stderr, and not between the output of a command that runs in this process.
    """
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[*structlog.get_config()["processors"][:-1], plain],
        logger_factory=structlog.PrintLoggerFactory(sys.__stderr__),
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: a file runs in one process, and the last one must not run alone."""
    marks: dict[Path, set[str]] = defaultdict(set)
    for item in items:
        marks[item.path].update(mark.name for mark in item.iter_markers())
    items.sort(key=lambda item: tuple(mark not in marks[item.path] for mark in ("spark", "e2e", "slow")))


QUIET = {"gossip", "membership", "scenarios"}
"""Folders of tests on simulated islands, which log far more than a failing test needs to show."""


@pytest.fixture(autouse=True)
def _quiet_in_simulations(request: pytest.FixtureRequest) -> None:
    if request.path.parent.name in QUIET:
        request.getfixturevalue("quiet_logs")


@pytest.fixture
def quiet_logs() -> Iterator[None]:
    """Log errors only."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.configure(**before)
