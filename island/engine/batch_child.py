"""The process of one batch. It runs the user's Python file with Spark, its settings and its inputs."""

from __future__ import annotations

import os
import sys
import types

from island.engine.protocol import EXIT_STARTING, ExecuteScript, LogNote, StartChild, frame, read_to_child, write_all
from island.engine.session_child import private_fds
from island.engine.spark import SparkDriver
from island.errors import IslandError


def main(argv: list[str]) -> int:
    """Start Java, hook pyspark, and run the file as the main program. Returns the exit code."""
    incoming, outgoing = private_fds(int(argv[1]), int(argv[2]))
    start, order = read_to_child(incoming), read_to_child(incoming)
    if not isinstance(start, StartChild) or not isinstance(order, ExecuteScript):
        return EXIT_STARTING
    try:
        driver = SparkDriver(start)
        driver.install()
    except IslandError as error:
        write_all(outgoing, frame(LogNote(f"The batch cannot start: {error}")))
        return EXIT_STARTING
    if not os.path.isfile(order.file):
        print(f"python: can't open file '{order.file}': No such file or directory", file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        # The log must be up to date while the batch runs.
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # both are TextIOWrapper at start
    sys.argv = [order.file, *order.args]
    sys.path[:0] = [os.path.dirname(order.file), *start.py_files]
    with open(order.file, "rb") as file:
        code = compile(file.read(), order.file, "exec", dont_inherit=True)
    module = types.ModuleType("__main__")
    module.__file__ = order.file
    sys.modules["__main__"] = module
    exec(code, module.__dict__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
