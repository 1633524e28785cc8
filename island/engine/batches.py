"""Batches. Each runs one Python file to its end."""

from __future__ import annotations

from typing import Any

from island.engine.admission import LaunchSpec
from island.engine.lifecycle import EngineContext, EngineJob
from island.engine.protocol import ExecuteScript
from island.livy.messages import BatchRequest, BatchView


class EngineBatch(EngineJob):
    """One batch. Its states are starting, running, success, dead and killed."""

    what = "batch"
    module = "island.engine.batch_child"

    def __init__(self, place: EngineContext, number: int, request: BatchRequest, admitted: LaunchSpec) -> None:
        super().__init__(place, number, request.name, admitted)
        self.request = request

    def first_frames(self) -> list[Any]:
        """The frame with the settings, then the frame with the file and its arguments."""
        return [self.start_frame(), ExecuteScript(self.admitted.file, self.request.args)]

    def started(self) -> None:
        """Set the state to running as soon as the process has started."""
        self.state = "running"

    def finish(self, code: int) -> str:
        """The last state: success for exit code 0, killed if the end was requested, else dead."""
        if self._ending is not None:
            return "killed"
        return "success" if code == 0 else "dead"

    def view(self) -> BatchView:
        """The batch as Livy shows it."""
        return BatchView(id=self.id, name=self.name, state=self.state, log=self.short_log())
