"""Batches: one Python file, run to its end."""

from __future__ import annotations

from typing import Any

from island.engine.admission import LaunchSpec
from island.engine.lifecycle import EngineContext, EngineJob
from island.engine.protocol import ExecuteScript
from island.livy.messages import BatchRequest, BatchView


class EngineBatch(EngineJob):
    """One batch. Its states: starting, running, success, dead, killed."""

    what = "batch"
    module = "island.engine.batch_child"

    def __init__(self, place: EngineContext, number: int, request: BatchRequest, admitted: LaunchSpec) -> None:
        super().__init__(place, number, request.name, admitted)
        self.request = request

    def first_frames(self) -> list[Any]:
        """The settings, then the file and its arguments."""
        return [self.start_frame(), ExecuteScript(self.admitted.file, self.request.args)]

    def started(self) -> None:
        """A batch runs from its process's first moment."""
        self.state = "running"

    def finish(self, code: int) -> str:
        """Success is exit code 0."""
        if self._ending is not None:
            return "killed"
        return "success" if code == 0 else "dead"

    def view(self) -> BatchView:
        """As Livy shows it."""
        return BatchView(id=self.id, name=self.name, state=self.state, log=self.short_log())
