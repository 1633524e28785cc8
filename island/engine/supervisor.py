"""The supervisor: parent process of one session or batch, which ends all its processes.

Run as a file (`python -I -S supervisor.py FD FD -- COMMAND...`) with the standard library only,
because it must start fast, run no user code and never be busy. It starts COMMAND with the two
descriptors, waits, and leaves no process behind:

- COMMAND ends: the processes that it left are killed. The supervisor exits with COMMAND's code
  (128 + signal number after a signal, as in a shell).
- Standard input is closed, by the engine or by its death: all processes are killed.
- SIGTERM: all processes are killed.

On Linux it is the subreaper of its descendants, so it also finds processes that left their group
or their parent. On other systems only the process group of COMMAND is killed.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.01
PATIENCE_S = 20.0


def become_subreaper() -> bool:
    """Become the parent of orphaned descendants (Linux only). Returns whether that succeeded."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def die_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when the thread that started it ends (Linux only)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """The ids of all descendants of the process `root`, without zombies. Reads /proc."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue  # the process has ended
        # The name is in parentheses and may have any characters; the fields follow the last parenthesis.
        fields = stat[stat.rindex(b")") + 2 :].split()
        if fields[0] != b"Z":
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def reap() -> bool:
    """Reap ended children. Returns whether any child is left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def kill_all(group: int, subreaper: bool) -> None:
    """Kill the command's process group and, as subreaper, all descendants, until none is left or time is up."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # no process of the group is left
    if not subreaper:
        return
    end = time.monotonic() + PATIENCE_S
    while reap() and time.monotonic() < end:
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # the process has ended
        time.sleep(POLL_S)


def main(argv: list[str]) -> int:
    """Start the command, wait until it ends or must be ended, and kill what is left. Returns the exit code."""
    split = argv.index("--")
    passed = tuple(int(fd) for fd in argv[:split])
    subreaper = become_subreaper()
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    os.set_blocking(wake_r, False)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    ordered: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ordered.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    command = subprocess.Popen(argv[split + 1 :], stdin=subprocess.DEVNULL, pass_fds=passed, process_group=0)
    # Copies in this process would keep the command's pipes open after its end.
    for fd in passed:
        os.close(fd)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)

    code: int | None = None
    while code is None and not ordered:
        ready, _, _ = select.select([0, wake_r], [], [], 5.0)
        if wake_r in ready:
            os.read(wake_r, 4096)
        if 0 in ready and not os.read(0, 4096):
            break
        # This checks the command only; `reap` collects its orphans.
        code = command.poll()
    if code is None:
        command.kill()
        code = command.wait()
    kill_all(command.pid, subreaper)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
