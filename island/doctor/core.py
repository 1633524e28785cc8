"""Decides from facts about an island and its machine what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from island.doctor.facts import (
    ClockFacts,
    DaemonFacts,
    DatabaseFacts,
    DiskFacts,
    EngineFacts,
    EngineFileFacts,
    EntryFacts,
    HomeFacts,
    PeerFacts,
    PortFacts,
    SandboxFacts,
    SecretFacts,
)
from island.kernel.repair import repair_advice
from island.kernel.units import format_bytes

Severity = Literal["ok", "unchecked", "warning", "problem"]
"""`unchecked`: it could not be checked now. `problem`: something does not work, or a secret is exposed."""

SPARK = "3.5"
MIN_FREE = 256 * 1024 * 1024
"""Free space in bytes below which writes of the databases are expected to fail soon."""
MIN_INODES = 1000
MIN_OPEN_FILES, MANY_OPEN_FILES = 512, 4096
CLOCK_WARNING_S, CLOCK_PROBLEM_S = 5.0, 300.0
"""Differences between clocks, in seconds."""
GUIDE = "the administrator's guide (docs/administrator.md of the repository)"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `island doctor`: what was found, and what to do next."""

    check: str
    severity: Severity
    found: str
    advice: str = ""
    """What to do; empty only if `severity` is `ok`."""


def home(facts: HomeFacts) -> Iterator[Finding]:
    """Check the home folder."""
    if not facts.exists or (facts.readable and not facts.is_island):
        what = "is not the home folder of an island" if facts.exists else "does not exist"
        advice = "Create it with `island init HOME --name NAME`, or select another with --home or ISLAND_HOME."
        yield Finding("home", "problem", f"{facts.path} {what}", advice)
        return
    if not facts.readable:
        found = f"{facts.path} belongs to {facts.owner or 'another account'} and cannot be read by {facts.account}"
        advice = f"Run the command as the account of the daemon: sudo -u {facts.owner or 'ACCOUNT'} island doctor"
        advice += f" --home {facts.path}"
        yield Finding("home", "problem", found, advice)
        return
    if facts.owner != facts.account:
        found = f"{facts.path} belongs to {facts.owner}, not to the account {facts.account} that runs this check"
        change = f"chown -R {facts.account}: {facts.path}"
        advice = f"Run the daemon and its commands as {facts.owner}, or give the files to this account: {change}"
        yield Finding("home", "warning", found, advice)
    if not facts.writable and not facts.read_only:  # the check of the disk reports the latter
        found = f"{facts.path} cannot be written by {facts.account}"
        yield Finding("home", "problem", found, f"Run: chmod u+rwx {facts.path}")
    if facts.mode & 0o077:
        found = f"other accounts of this machine can enter {facts.path} (mode {facts.mode:04o})"
        yield Finding("home", "problem", found, f"Run: chmod 700 {facts.path}")
    elif facts.writable or facts.read_only:
        yield Finding("home", "ok", f"{facts.path}, of {facts.owner}, mode {facts.mode:04o}")


def secrets(facts: Sequence[SecretFacts]) -> Iterator[Finding]:
    """Check the key and the tokens."""
    for each in facts:
        if each.error:
            yield Finding("secrets", "problem", each.error, each.hint or f"See 'Restore' in {GUIDE}.")
    if facts and not any(each.error for each in facts):
        names = ", ".join(each.name for each in facts)
        yield Finding("secrets", "ok", f"{names} can be read by their owner only")


def entries(facts: EntryFacts) -> Iterator[Finding]:
    """Check modes and owners of the other files in the home folder."""
    if facts.open:
        found = f"other accounts of this machine can access {_some(facts.open)} in the home folder"
        yield Finding(
            "modes", "problem", found, f"Run: chmod -R go-rwx {facts.home} (the daemon does so when it starts)."
        )
    if facts.foreign:
        found = f"{_some(facts.foreign)} in the home folder belong to another account"
        yield Finding("modes", "problem", found, f"Run as root: chown -R {facts.owner}: {facts.home}")
    if not facts.open and not facts.foreign:
        yield Finding("modes", "ok", "only its owner can access the files in the home folder")


def databases(facts: Sequence[DatabaseFacts]) -> Iterator[Finding]:
    """Check versions and content of the databases."""
    for each in facts:
        if each.denied is not None:
            found = f"{each.denied.name} cannot be opened by {each.denied.account}: it belongs to {each.denied.owner}"
            yield Finding("database", "problem", found, each.denied.hint)
        elif each.unreadable and each.hindered:
            advice = "Look for a program that has locked it, a full or read-only disk, and run this command again."
            yield Finding("database", "unchecked", f"{each.name} was not checked: {each.unreadable}", advice)
        elif each.unreadable:
            advice = f"Check the disk and the system's log, and owner and mode of {each.path}."
            yield Finding("database", "problem", f"{each.name} cannot be read: {each.unreadable}", advice)
        elif each.version is None:
            yield Finding("database", "ok", f"{each.name} does not exist yet; the daemon creates it")
        elif each.version > each.newest:
            found = f"{each.name} was written by a newer version of island"
            found += f" (schema {each.version}; this version supports up to {each.newest})"
            advice = f"Run the newer version, or go back with a backup: see 'Upgrade, and back' in {GUIDE}."
            yield Finding("database", "problem", found, advice)
        elif each.errors:
            yield Finding("database", "problem", f"{each.name} is damaged: {each.errors[0]}", repair_advice(each.name))
        elif not each.complete:
            advice = f"Stop the daemon and run: sqlite3 {each.path} 'PRAGMA quick_check'"
            yield Finding("database", "unchecked", f"{each.name} is too large to be checked completely here", advice)
        else:
            found = f"{each.name} is intact (schema {each.version})"
            late = "the daemon migrates it when it starts" if each.version < each.newest else ""
            yield Finding("database", "ok", found + (f"; {late}" if late else ""))


def disk(facts: DiskFacts) -> Iterator[Finding]:
    """Check space and inodes of the disk."""
    free = f"{format_bytes(facts.free)} are free on the disk of {facts.path}"
    if facts.read_only:
        found = f"the file system of {facts.path} is read-only"
        yield Finding("disk", "problem", found, "Look for disk errors in the system's log; mount it for writing.")
    if facts.inodes is not None and facts.inodes < MIN_INODES:
        found = f"only {facts.inodes} inodes are free on the disk of {facts.path}"
        yield Finding("disk", "problem", found, "Delete files; many small files use up inodes before space.")
    if facts.free < MIN_FREE:
        advice = (
            "Free some space: `island dataset drop` deletes replicas. Jobs and changes are refused when it is full."
        )
        yield Finding("disk", "problem", f"only {free}", advice)
    elif facts.reserve is not None and facts.free < facts.reserve:
        found = f"{free}, less than [replicas] reserve = {format_bytes(facts.reserve)}: replicas cannot grow"
        yield Finding("disk", "warning", found, "Free some space, or reduce the reserve in island.toml.")
    elif facts.quota is not None and facts.quota - facts.stored > facts.free - (facts.reserve or 0):
        found = f"{free}, so the chunk store cannot reach [replicas] quota = {format_bytes(facts.quota)}"
        yield Finding("disk", "warning", found, "Reduce the quota in island.toml, or move HOME to a larger disk.")
    else:
        yield Finding("disk", "ok", free)


def open_files(limit: int, whose: str) -> Iterator[Finding]:
    """Check the limit on open files, which the daemon raises to the hard limit; `whose` limit it is."""
    found = f"{whose} can open at most {limit} files"
    advice = "Raise the hard limit: LimitNOFILE=65536 in the systemd unit, or /etc/security/limits.conf."
    if limit < MIN_OPEN_FILES:
        yield Finding("open files", "problem", f"{found}: too few for databases, sessions and connections", advice)
    elif limit < MANY_OPEN_FILES:
        found += f": each port accepts {limit // 4} connections at most"
        yield Finding("open files", "warning", found, advice)
    else:
        yield Finding("open files", "ok", found)


def clock(facts: ClockFacts) -> Iterator[Finding]:
    """Check the clock of this machine: nothing orders by it, but people read times, and TLS and Kerberos need it."""
    advice = "Synchronize the clock: timedatectl set-ntp true, or install chrony."
    wrong = False
    for whose, ahead, error in facts.others:
        difference = abs(ahead) - error
        if difference > CLOCK_WARNING_S:
            wrong = True
            severity: Severity = "problem" if difference > CLOCK_PROBLEM_S else "warning"
            found = (
                f"the clock of this machine is {_duration(abs(ahead))} {'behind' if ahead > 0 else 'ahead of'} {whose}"
            )
            yield Finding("clock", severity, found, f"{advice} Or the other clock is wrong.")
    if facts.newest_change_s < -CLOCK_PROBLEM_S:
        wrong = True
        found = f"the databases were changed {_duration(-facts.newest_change_s)} in the future: the clock was set back"
        yield Finding("clock", "problem", found, advice)
    if facts.synchronized is False:
        yield Finding("clock", "warning", "the clock of this machine is not synchronized (NTP)", advice)
    elif facts.synchronized is None and not facts.others:
        found = "this system does not tell whether its clock is synchronized, and no other clock could be asked"
        yield Finding("clock", "unchecked", found, "Compare the output of `date -u` with a reliable clock.")
    elif not wrong:
        agreed = f"; it agrees with {_some([whose for whose, *_ in facts.others])}" if facts.others else ""
        known = "synchronized (NTP)" if facts.synchronized else "not known to be synchronized"
        yield Finding("clock", "ok", f"the clock of this machine is {known}{agreed}")


def engine(facts: EngineFacts) -> Iterator[Finding]:
    """Check Java and Spark for the embedded engine, or the Livy of the site."""
    if facts.livy:
        which = f"engine '{facts.engine}': " if facts.engine else ""
        if facts.error:
            yield Finding("livy", "problem", which + facts.error, facts.hint)
        else:
            yield Finding("livy", "ok", f"{which}Livy {facts.version or 'of unknown version'} answers at {facts.livy}")
        return
    extra = "Install the extra `spark` (in a clone: pip install '.[spark]'), or set [livy] url to your own Livy."
    if not facts.version:
        yield Finding("spark", "problem", "PySpark is not installed, so no session can run on this island", extra)
    elif not facts.version.startswith(f"{SPARK}."):
        found = f"PySpark {facts.version} is installed, but the embedded engine needs {SPARK}"
        yield Finding("spark", "problem", found, extra)
    else:
        yield Finding("spark", "ok", f"PySpark {facts.version}")
    if facts.error:
        yield Finding("java", "problem", facts.error, facts.hint)
    elif facts.ignored:
        found = f"JAVA_HOME={facts.ignored} has no Java 17 and is ignored: {facts.java} is used"
        yield Finding("java", "warning", found, "Unset JAVA_HOME, or set it to a Java 17.")
    else:
        yield Finding("java", "ok", f"Java 17 at {facts.java}")


def engine_files(facts: EngineFileFacts) -> Iterator[Finding]:
    """Check whether a Livy can read inputs and the files of batches."""
    of = f"engine '{facts.engine}'"
    share = f"See 'A Livy of another account' in {GUIDE}."
    if facts.problem:
        yield Finding("livy files", "problem", f"the shared folder of {of} cannot be used: {facts.problem}", share)
    elif facts.denied:
        accounts = _some(facts.denied)
        found = f"{of} runs as {accounts}, which cannot read {facts.folder}: its jobs find neither inputs nor files"
        change = f"Add {accounts} to the group of {facts.folder}, and start Livy again." if facts.shared else share
        yield Finding("livy files", "problem", found, change)
    elif facts.accounts is None:
        found = f"{of} is on another machine: whether it can read {facts.folder} is not known"
        yield Finding("livy files", "unchecked", found, f"Run a batch there. {share}")
    elif facts.accounts:
        yield Finding("livy files", "ok", f"{of} runs as {_some(facts.accounts)}, which can read {facts.folder}")


def ports(facts: Sequence[PortFacts]) -> Iterator[Finding]:
    """Check whether the daemon listens, or could listen, on its ports."""
    for each in facts:
        what = f"{each.key} = {each.address}"
        holder = f" by {each.holder}" if each.holder else " by another program"
        change = f"change {each.key} under [listen] in island.toml."
        if each.state == "taken":
            yield Finding("ports", "problem", f"{what} is in use{holder}", f"Stop that program, or {change}")
        elif each.state == "foreign":
            found = f"{what} is not an address of this machine"
            yield Finding("ports", "problem", found, f"Use 127.0.0.1, 0.0.0.0 or an address of `ip address`: {change}")
        elif each.state == "denied":
            advice = f"Ports below 1024 need a privilege: {change}"
            yield Finding("ports", "problem", f"{what} cannot be used by this account", advice)
        elif each.state == "silent":
            advice = "See the daemon's log, and restart it."
            yield Finding("ports", "problem", f"the daemon runs, but nothing answers at {what}", advice)
        else:
            state = "is served by this daemon" if each.state == "ours" else "is free"
            yield Finding("ports", "ok", f"{what} {state}")


def peers(facts: PeerFacts) -> Iterator[Finding]:
    """Check whether other islands can dial this one."""
    for host in facts.unknown_hosts:
        found = f"the host name of '{host}' in listen.advertise cannot be resolved"
        yield Finding("reachability", "problem", found, "Correct the name, or its DNS entry.")
    if not facts.listen:
        yield Finding("reachability", "ok", "listen.peer is empty: this island only dials out, and needs no open port")
        return
    seen = [each for each in facts.views or () if each.reached is not None]
    lost = [each for each in seen if not each.reached]
    severity: Severity = "problem" if len(lost) == len(seen) else "warning"
    for each in lost:
        advice = "Open the peer port in firewall and NAT, and set listen.advertise to an address that others can dial."
        yield Finding("reachability", severity, f"{each.island} cannot dial this island: {each.reason}", advice)
    if reached := [each.island for each in seen if each.reached]:
        yield Finding("reachability", "ok", f"{_some(reached)} can dial this island")
    if not seen:
        yield _not_asked(facts)


def _not_asked(facts: PeerFacts) -> Finding:
    if facts.loopback:
        found = f"listen.peer = {facts.listen} is a loopback address: only islands of this machine can dial it"
        return Finding("reachability", "ok", found, "For islands of other machines, see 'Connect islands' in " + GUIDE)
    if facts.views is None:
        found = (
            "other islands were not asked whether they can dial this one, because the daemon did not answer this token"
        )
        advice = "Start the daemon, and run this command with the token of an administrator."
        return Finding("reachability", "unchecked", found, advice)
    found = "no island is linked that could be asked whether it can dial this one"
    advice = "Invite or join an island (island peer invite, island peer join) and run this command again."
    return Finding("reachability", "unchecked", found, advice)


def daemon(facts: DaemonFacts) -> Iterator[Finding]:
    """Check the running daemon and its own problems."""
    if not facts.running:
        found = "the daemon is not running"
        start = f"island run --home {facts.home}"
        if facts.stale:
            yield Finding("daemon", "warning", f"{found}; it did not stop in order", f"See its log; start it: {start}")
        else:
            yield Finding("daemon", "unchecked", f"{found}; what it reports itself was not checked", f"Run: {start}")
        return
    name = f"the daemon (pid {facts.pid})" if facts.pid else "the daemon"
    if facts.silent:
        yield Finding("daemon", "problem", f"{name} does not answer", facts.hint)
        return
    if facts.error:
        yield Finding(
            "daemon", "problem", f"{name} runs, but cannot be asked: {facts.error}", facts.hint or "See its log."
        )
        return
    if facts.version != facts.program:
        found = f"{name} runs version {facts.version}, but version {facts.program} is installed"
        yield Finding("daemon", "warning", found, "Restart the daemon.")
    if facts.configured_later:
        found = f"island.toml was changed after {name} started, and the changes are not in force"
        yield Finding("daemon", "warning", found, "Check them with `island config check`, and restart the daemon.")
    if facts.discovery.startswith("failed"):
        advice = f"See 'Troubleshoot by symptom' in {GUIDE}, or set enabled = false under [discovery] in island.toml."
        yield Finding("daemon", "warning", f"discovery on the local network {facts.discovery}", advice)
    for problem in facts.problems:
        severity: Severity = "problem" if facts.state != "starting" else "warning"
        yield Finding("daemon", severity, problem, f"See 'Troubleshoot by symptom' in {GUIDE}, and the daemon's log.")
    if not facts.problems:
        yield Finding("daemon", "ok", f"{name} is {facts.state}")


def sandbox(facts: SandboxFacts) -> Iterator[Finding]:
    """Say what is not confined."""
    if facts.root:
        advice = "Run it under an account of its own, which owns the home folder and nothing else."
        found = "this island runs as root" + (", and so does the code of its sessions" if facts.embedded else "")
        yield Finding("sandbox", "warning", found, advice)
    if not facts.embedded:
        yield _sandbox_of_livy(facts)
        return
    who = "users and other islands" if facts.foreign else "users"
    found = (
        f"code of {who} runs as {facts.account}, without a sandbox: it can read the key and the tokens of this island"
    )
    advice = (
        f"Set [livy] url to a Livy that runs sessions as other accounts, or see 'Code from other islands' in {GUIDE}."
    )
    yield Finding("sandbox", "warning", found, advice)


def _sandbox_of_livy(facts: SandboxFacts) -> Finding:
    """Say what the account of the site's Livy tells; a session that Livy starts on its own machine has this account."""
    own = f"Run Livy under an account of its own, other than {facts.account} and root."
    if facts.livy_accounts is None:
        found = "sessions run in a Livy on another machine, whose accounts are not known here"
        advice = f"Check that its sessions cannot run as {facts.account} where this home folder is mounted."
        return Finding("sandbox", "unchecked", found, advice)
    if not facts.livy_accounts:
        found = "Livy is on this machine, and its account is not known"
        return Finding("sandbox", "unchecked", found, f"{own} Run this command again while Livy is running.")
    accounts = ", ".join(facts.livy_accounts)
    if {facts.account, "root"} & set(facts.livy_accounts):
        found = (
            f"Livy is on this machine and runs as {accounts}: the code of its sessions can read the key and the tokens"
        )
        return Finding("sandbox", "warning", f"{found} of this island, unless Livy changes the account", own)
    return Finding("sandbox", "ok", f"Livy is on this machine and runs as {accounts}, not as {facts.account}")


def one_line(text: str) -> str:
    """Return a text without line breaks, so that a part of it cannot look like another line of the output."""
    return " ".join(text.splitlines())


def failed(findings: Sequence[Finding]) -> bool:
    """Return whether a finding is a problem."""
    return any(each.severity == "problem" for each in findings)


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
