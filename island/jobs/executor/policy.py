"""The policy of an executor: whose jobs it runs, and what they may set and request. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from island.config import JobsSection
from island.jobs.core import STOCK_LANGUAGES, resources_problem
from island.jobs.foreign_conf import refused_foreign_keys
from island.jobs.messages import MAX_HOPS, Envelope, JobSpec
from island.kernel.ids import is_job_id, is_name

_VIEW: Final = re.compile(r"[A-Za-z0-9_]{1,200}")


_SCRIPT: Final = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}\.py")


def policy_refusal(
    jobs: JobsSection, home_name: str, user: str | None, *, is_home: bool, means: Callable[[str], bool]
) -> str:
    """Why this island does not run a job of a user, naming all keys of island.toml that forbid it; "" if it does.

    `user` is None for a job whose user is not known: then it counts what any user of its home may do. `means(text)`
    tells whether a name or key in `accept_from` means its home.
    """
    if is_home:
        return ""
    keys = []
    if not any(_accepts(entry, user, means) for entry in jobs.accept_from):
        keys.append("jobs.accept_from " + (f"names neither it nor its user {user}" if user else "does not name it"))
    if jobs.foreign_code == "none":
        keys.append('jobs.foreign_code is "none"')
    if not jobs.same_user:
        keys.append("jobs.same_user is false")
    if not keys:
        return ""
    return f"its administrator does not accept jobs of {home_name}: in its island.toml, {', and '.join(keys)}"


def _accepts(entry: str, user: str | None, means: Callable[[str], bool]) -> bool:
    island, colon, name = entry.partition(":")
    return entry == "members" or (means(island) and (not colon or user is None or name == user))


def account_of(accounts: Mapping[str, str], user: str, *, is_home: bool, means: Callable[[str], bool]) -> str | None:
    """The local account for the jobs of a user in `jobs.accounts`; None if it has none for her.

    `is_home`: she is a user of this island, whose name alone is an entry. `means` is as in `policy_refusal`.
    """
    if is_home and user in accounts and ":" not in user:
        return accounts[user]
    for entry, account in accounts.items():
        island, colon, name = entry.rpartition(":")
        if colon and name == user and means(island):
            return account
    return None


def envelope_problem(envelope: Envelope, sender: str, me: str) -> str:
    """Why an envelope from `sender` is refused, or ""."""
    if envelope.home != sender:
        return "only its home may offer a job"
    if not is_name(envelope.user):  # it is shown as USER@ISLAND, and compared with ISLAND:USER
        return "the name of its user is not valid"
    if not envelope.path or envelope.path[0] != envelope.home:
        return "the path of the job does not begin at its home"
    if me != envelope.home and me in envelope.path:
        return "the job has already passed through this island"
    if len(envelope.path) > MAX_HOPS:
        return "the job passed through too many islands"
    if envelope.hops < 1 and me != envelope.home:
        return "the job may not pass through more islands"
    return job_problem(envelope.job, envelope.home)


def job_problem(job: str, home: str) -> str:
    """Why `job` is not the id of a job of `home`, or ""."""
    # The id becomes part of a path and of a session name at the engine.
    return "" if is_job_id(job) and job.endswith("." + home[:10]) else "the id of the job does not belong to that home"


def work_problem(work: JobSpec) -> str:
    """Why the work of another home is refused, or "". An honest home never sends such work."""
    if bad := refused_foreign_keys(work.conf):
        return f"a job of another island may not set {', '.join(bad)[:500]} there"
    if any(not value.isprintable() for value in work.conf.values()):
        return "a setting in its conf has unprintable characters or several lines"
    if problem := resources_problem(work.resources):
        return problem
    if any(not ref.views or not all(_VIEW.fullmatch(view) for view in ref.views) for ref in work.inputs):
        return "an input has no view, or a view with an invalid name"
    if work.kind == "batch" and not (_SCRIPT.fullmatch(work.file_name) and work.file_hash):
        return "its file is missing, or its name is not the plain name of a Python file"
    if work.kind == "session" and (work.file_name or work.file_hash):
        return "a session cannot have a file"
    if work.language not in STOCK_LANGUAGES or (work.language == "batch") != (work.kind == "batch"):
        return f"a {work.kind} cannot be of kind '{work.language[:40]}'"
    return ""
