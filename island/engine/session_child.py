"""The process of one session. It starts Spark and runs the statements that the engine sends, one at a time.

Frames are read from descriptor argv[1] and written to argv[2], so they are separate from the
standard streams of user code: its input is empty, and its output goes to the session's log. The
main thread runs statements. A second thread reads frames, so a cancel is read at any time.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import types
from typing import Any

from island.engine.code_completion import python_names, sql_names
from island.engine.protocol import (
    EXIT_JAVA,
    EXIT_STARTING,
    CancelStatement,
    CodeCandidates,
    CompleteCode,
    ExecuteStatement,
    LogNote,
    Ready,
    StartChild,
    StatementDone,
    frame,
    read_to_child,
    write_all,
)
from island.engine.shell import OutputCapture, PythonShell, StatementCancelled, cleaned, size_of
from island.engine.spark import SparkDriver
from island.engine.supervisor import die_with_parent
from island.engine.table import run_sql
from island.errors import IslandError
from island.livy.messages import Output

JOB_CANCEL_S = 2.0
"""Seconds that Spark has to end a cancelled job before Python is interrupted within a call to Spark."""
AGAIN_S = 0.5
"""Maximum seconds between repeated interrupts of a cancelled statement."""


class FrameWriter:
    """Sends frames to the engine, from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        """Send a frame. The process exits if the pipe is closed, by the end of the engine or by user code."""
        with self._lock:
            try:
                write_all(self._fd, frame(message))
            except OSError:
                os._exit(1)


class StatementRunner:
    """Runs statements in the main thread. Other threads can cancel the running statement."""

    def __init__(self, channel: FrameWriter, start: StartChild) -> None:
        self.channel = channel
        self.start = start
        self.queue: queue.SimpleQueue[ExecuteStatement] = queue.SimpleQueue()
        self.capture = OutputCapture(start.max_output, _to_log)
        self.shell = PythonShell(self.capture)
        self.count = 0
        self.running: int | None = None
        self.cancelled: set[int] = set()
        self._interruptible = False
        self._in_call_until = 0.0

    def open(self) -> None:
        """Start Spark, create the views, and define `spark`, `sc` and `sqlContext`. Raises `EngineFailed`."""
        driver = SparkDriver(self.start)
        driver.install()
        sys.path[:0] = self.start.py_files
        spark, context, sql = driver.session()
        self.spark = spark
        threading.Thread(target=self._end_with_java, args=(driver,), daemon=True).start()
        self.shell.names.update(spark=spark, sc=context, sqlContext=sql)

    def _end_with_java(self, driver: SparkDriver) -> None:
        """End the process, with a note in the log, when its JVM has ended."""
        code = driver.jvm.process.wait()
        self.channel.send(LogNote(f"Spark's Java exited with code {code}: it was out of memory, or was killed"))
        os._exit(EXIT_JAVA)

    def serve(self) -> None:
        """Run statements until the process ends."""
        while True:
            self.run(self.queue.get())

    def run(self, order: ExecuteStatement) -> None:
        """Run one statement and send its result to the engine."""
        output: Output | None = None
        self.running = order.id
        # The handler of Spark or of user code would end this process when a statement is cancelled.
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            self._interruptible = True
            try:
                if order.id not in self.cancelled:
                    output = self._output(order)
            finally:
                self._interruptible = False
        except StatementCancelled:
            output = None
        self.running = None
        if order.id in self.cancelled:
            self.cancelled.discard(order.id)
            output = None
            self._forget_connection()
        self.channel.send(StatementDone(order.id, _sendable(output, self.count - 1)))

    def _output(self, order: ExecuteStatement) -> Output:
        number = self.count
        self.count += 1
        if (context := _active_context()) is not None:
            context.setJobGroup(f"island-{order.id}", f"statement {order.id}", interruptOnCancel=True)
        if order.kind == "sql":
            self.capture.begin()
            try:
                output = run_sql(self.shell.names.get("spark") or self.spark, order.code, number, self.start.rows)
            finally:
                self.capture.end()
        else:
            output = self.shell.run(order.code, number)
        if (size := size_of(output)) > 2 * self.start.max_output:
            text = f"the result has {size} characters; the limit is {2 * self.start.max_output}. Select less data."
            output = Output("error", number, ename="ResultTooLarge", evalue=text, traceback=[])
        return output

    def complete(self, request: CompleteCode) -> None:
        """Answer a request for candidates, in a thread of its own: a property of user code may block."""
        threading.Thread(target=self._complete, args=(request,), daemon=True).start()

    def _complete(self, request: CompleteCode) -> None:
        names: list[str] = []
        try:
            if request.kind == "sql":
                names = sql_names(request.code, [*self.start.views, *self.start.aliases])
            else:
                names = python_names(request.code, dict(self.shell.names))
        except Exception as error:  # noqa: BLE001 - a property of user code may raise anything
            self.channel.send(LogNote(f"completion failed: {type(error).__name__}"))
        self.channel.send(CodeCandidates(request.id, [name for name in names if name.isprintable()]))

    # -- cancelling, called by the thread that reads frames -----------------------------

    def cancel(self, number: int) -> None:
        """Cancel a statement: Spark's jobs, then Python, repeatedly until it has ended."""
        self.cancelled.add(number)
        self._in_call_until = time.monotonic() + JOB_CANCEL_S
        threading.Thread(target=self._cancel, args=(number,), daemon=True).start()

    def _cancel(self, number: int) -> None:
        main = threading.main_thread().ident
        pause = 0.02
        while self.running == number:
            if main is not None:
                signal.pthread_kill(main, signal.SIGINT)
            try:
                if (context := _active_context()) is not None:
                    context.cancelJobGroup(f"island-{number}")
            except Exception as error:  # noqa: BLE001 - Spark may be stopped or broken; Python is interrupted nevertheless
                self.channel.send(LogNote(f"cancel: Spark did not cancel its jobs: {error}"))
            time.sleep(pause)
            pause = min(AGAIN_S, pause * 1.5)

    def _interrupt(self, _number: int, at: types.FrameType | None) -> None:
        """Handle SIGINT in the main thread. Within a call to Spark, wait for Spark to cancel its jobs first."""
        if not self._interruptible or self.running not in self.cancelled:
            return
        if _in_spark_call(at) and time.monotonic() < self._in_call_until:
            return
        raise StatementCancelled

    def _forget_connection(self) -> None:
        """Close this thread's connection to the JVM, on which the answer to the interrupted call may still arrive."""
        try:
            from pyspark import SparkContext

            client = SparkContext._gateway._gateway_client
            connection = client.get_thread_connection()
            if connection is not None:
                connection.close()
        except Exception as error:  # noqa: BLE001 - internals of py4j, which may change
            self.channel.send(LogNote(f"cancel: the connection to Spark could not be renewed: {error}"))


def _sendable(output: Output | None, number: int) -> Output | None:
    """The output, or a replacement if it cannot be encoded as JSON (for example because of a lone surrogate)."""
    try:
        frame(output)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, UnicodeEncodeError) and output is not None:
            return cleaned(output)
        text = f"the result cannot be sent as JSON: {error}"
        return Output("error", number, ename=type(error).__name__, evalue=text, traceback=[])
    return output


def _active_context() -> Any:
    """The current SparkContext, or None. User code may stop it and start another one."""
    from pyspark import SparkContext

    context = SparkContext._active_spark_context
    return context if context is not None and context._jsc is not None else None


def _in_spark_call(at: types.FrameType | None) -> bool:
    while at is not None:
        if at.f_code.co_filename.endswith(("py4j/clientserver.py", "py4j/java_gateway.py")):
            return True
        at = at.f_back
    return False


def _to_log(text: str) -> None:
    """Write text that is printed between statements, by threads of user code, to the session's log."""
    write_all(1, text.encode("utf-8", "backslashreplace"))


def private_fds(incoming: int, outgoing: int) -> tuple[int, int]:
    """Make the descriptors of the frames private to this process, and standard input empty.

    If the supervisor is killed, the kernel kills this process as well, which closes the input of the
    JVM and so ends it.
    """
    die_with_parent(signal.SIGKILL)
    os.set_inheritable(incoming, False)
    os.set_inheritable(outgoing, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return incoming, outgoing


def read_orders(fd: int, session: StatementRunner) -> None:
    """Read frames until the pipe is closed, by the engine or by user code; then end the process."""
    try:
        while True:
            order = read_to_child(fd)
            if isinstance(order, ExecuteStatement):
                session.queue.put(order)
            elif isinstance(order, CancelStatement):
                session.cancel(order.id)
            elif isinstance(order, CompleteCode):
                session.complete(order)
    except (EOFError, OSError):
        os._exit(0)


def main(argv: list[str]) -> int:
    """Run the process of a session. Returns the exit code."""
    incoming, outgoing = private_fds(int(argv[1]), int(argv[2]))
    channel = FrameWriter(outgoing)
    start = read_to_child(incoming)
    if not isinstance(start, StartChild):
        return EXIT_STARTING
    session = StatementRunner(channel, start)
    try:
        session.open()
    except IslandError as error:
        channel.send(LogNote(f"The session cannot start: {error}"))
        return EXIT_STARTING
    threading.Thread(target=read_orders, args=(incoming, session), daemon=True).start()
    channel.send(Ready())
    session.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
