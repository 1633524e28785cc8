"""The parent of one session's processes, which ends every one of them.

Run as a file (`python -I -S warden.py FD FD -- COMMAND...`), on the standard library
alone: it must start fast, run none of the user's code and never be busy. It starts
COMMAND with the two descriptors, waits, and leaves nothing behind:

- COMMAND ends → what it left running is killed; the warden exits with COMMAND's code
  (128 + signal for a signal, as a shell has it).
- standard input ends (the engine closed it, or died however) → all are killed.
- SIGTERM → all are killed.

On Linux it is the subreaper of everything below it, so that a process which left its
group or its parent is found as well. Elsewhere the command's process group is all that is killed.
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
    """Have orphans below us become our children (Linux); whether that worked."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def die_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when the thread that started it ends (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Processes below `root`, zombies left out. Reads /proc."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue  # it ended meanwhile
        # The name stands in parentheses and may hold anything; the fields follow the last one.
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
    """Collect ended children; whether any child is left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def kill_all(group: int, subreaper: bool) -> None:
    """Kill the command's group and, where they can be found, all below this process, until nothing is left."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nothing of the group is left
    if not subreaper:
        return
    end = time.monotonic() + PATIENCE_S
    while reap() and time.monotonic() < end:
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended meanwhile
        time.sleep(POLL_S)


def main(argv: list[str]) -> int:
    """Start the command, wait for it or for the order to end, and clear up."""
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
    # Ours would keep the engine from seeing the ends of the command's pipes.
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
        # Only the command is asked for here: its own orphans are collected by `reap`.
        code = command.poll()
    if code is None:
        command.kill()
        code = command.wait()
    kill_all(command.pid, subreaper)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
