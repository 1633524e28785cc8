"""The engines of an island, by their names."""

from __future__ import annotations

from collections.abc import Sequence

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

    def problems(self) -> list[str]:
        """Why engines cannot run anything now, one sentence for each."""
        return [f"engine '{engine.name}': {engine.problem}" for engine in self.all() if engine.problem]

    def all(self) -> tuple[EnginePort, ...]:
        """All engines."""
        return tuple(self._engines.values())

    def get(self, name: str) -> EnginePort | None:
        """The engine with this name, or None: the administrator may have removed it from the configuration."""
        return self._engines.get(name)
