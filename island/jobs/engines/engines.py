"""The engines of an island, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from island.jobs.engines.port import EnginePort
from island.kernel.loops import Tasks


class Engines:
    """The engines of the configuration, in its order. There may be none."""

    def __init__(self, engines: Sequence[EnginePort] = ()) -> None:
        self._engines = {engine.name: engine for engine in engines}

    async def start(self, tasks: Tasks) -> None:
        """Begin to watch the engines in the background."""
        for engine in self.all():
            await engine.start(tasks)

    async def stop(self) -> None:
        """Close the connections to the engines."""
        for engine in self.all():
            await engine.stop()

    def problems(self) -> list[str]:
        """Why engines cannot run anything now, one sentence for each."""
        return [
            f"engine '{engine.name}': {engine.problem}" if engine.url else engine.problem
            for engine in self.all()
            if engine.problem
        ]

    def rows(self) -> list[dict[str, Any]]:
        """The engines for the status of the island."""
        return [
            {
                "name": engine.name,
                "url": engine.url or None,
                "version": engine.version or None,
                "kinds": list(engine.kinds()),
                "capacity": engine.capacity,
                "free": engine.free(),
                "problem": engine.problem or None,
            }
            for engine in self.all()
        ]

    def all(self) -> tuple[EnginePort, ...]:
        """All engines."""
        return tuple(self._engines.values())

    def get(self, name: str) -> EnginePort | None:
        """The engine with this name, or None: the administrator may have removed it from the configuration."""
        return self._engines.get(name)
