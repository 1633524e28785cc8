"""Pure decisions about jobs: what may run, which settings are allowed, and how lost work is reported.

No I/O, clock, randomness or logging. `router` chooses the island that runs a job.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from island.catalog.view_names import plain_name, view_name
from island.config import JobsSection
from island.errors import BadInput
from island.jobs.messages import (
    LOG_LINES,
    MAX_HOPS,
    MAX_OUTPUT,
    Envelope,
    InputRef,
    JobReport,
    JobSpec,
    StatementReport,
)
from island.kernel.codec import Malformed
from island.kernel.ids import is_job_id
from island.livy.conf import INPUTS_KEY, PATH_PREFIX, is_protected
from island.livy.messages import SESSION_ALIVE, SESSION_ENDED, STATEMENT_ENDED

QUEUE_PREFIX: Final = "island:"
EMBEDDED_LANGUAGES: Final = ("batch", "pyspark", "shared", "sql")
STOCK_LANGUAGES: Final = ("batch", "pyspark", "shared", "spark", "sparkr", "sql")

MAX_SESSIONS_OF_USER: Final = 50
"""Maximum number of live sessions and batches of one user at one home."""

# Keys that a client may never set, in addition to those that the engine refuses: where data come
# from, how names are resolved outside Spark, and all island settings except the inputs.
_REFUSED_PREFIXES: Final = ("spark.hadoop.", "spark.hive.", "spark.island.", "spark.jars", "spark.submit.")

# Keys that a job of another home may set: partitioning and sizes of its own computation, and
# nothing that names a class, a path, an address or a catalog.
_FOREIGN: Final = re.compile(
    r"spark\.(app\.name|default\.parallelism|rdd\.compress|speculation|serializer\.objectStreamReset"
    r"|(driver|executor)\.(memory|cores|memoryOverhead)|driver\.maxResultSize|executor\.instances"
    r"|dynamicAllocation\.(enabled|maxExecutors|minExecutors)|task\.(cpus|maxFailures)"
    r"|sql\.(shuffle\.partitions|session\.timeZone|ansi\.enabled|autoBroadcastJoinThreshold|caseSensitive"
    r"|broadcastTimeout|repl\.eagerEval\.[A-Za-z]+|adaptive\.(?!customCostEvaluatorClass)[A-Za-z.]+|execution\.arrow\.[A-Za-z.]+"
    r"|files\.maxPartitionBytes|parquet\.(binaryAsString|int96RebaseModeInRead|filterPushdown)))"
)

RESOURCES: Final = (
    "driverMemory",
    "driverCores",
    "executorMemory",
    "executorCores",
    "numExecutors",
    "ttl",
    "idleTimeout",
)
"""The fields of Livy's requests, besides `conf`, that are sent to the executor."""

_VIEW: Final = re.compile(r"[A-Za-z0-9_]{1,200}")
_SCRIPT: Final = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}\.py")

_NO_TABLE: Final = re.compile(
    r"TABLE_OR_VIEW_NOT_FOUND\]?[^`]*((?:`[^`]{1,200}`\.?)+)|Table or view not found: ([A-Za-z0-9_.`]{1,200})"
)


# --- requests of clients ------------------------------------------------------------------


def refused_keys(conf: Mapping[str, str]) -> list[str]:
    """The keys of `conf` that no client may set, sorted."""
    return sorted(key for key in conf if is_protected(key) or (key.startswith(_REFUSED_PREFIXES) and key != INPUTS_KEY))


def refused_foreign_keys(conf: Mapping[str, str]) -> list[str]:
    """The keys of `conf` that a job of another home may not set, sorted."""
    return sorted(key for key in conf if key != INPUTS_KEY and not _FOREIGN.fullmatch(key))


def named_inputs(conf: Mapping[str, str]) -> list[str]:
    """The dataset names in `spark.island.inputs`, in order, without duplicates. Raises `BadInput` above 64 names."""
    names = [part.strip() for part in conf.get(INPUTS_KEY, "").split(",")]
    found = list(dict.fromkeys(name for name in names if name))
    if len(found) > 64:
        raise BadInput(f"{len(found)} inputs; the limit is 64", hint="Combine them into fewer datasets.")
    return found


def pinned(queue: str | None) -> str:
    """The island that `queue = "island:NAME"` names, or ""."""
    return queue[len(QUEUE_PREFIX) :].strip() if queue and queue.startswith(QUEUE_PREFIX) else ""


def request_hash(kind: str, request: Any) -> str:
    """The SHA-256 of the kind and canonical JSON of a request. Equal hashes mean equal requests."""
    text = json.dumps([kind, request], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def statement_hash(code: str, language: str) -> str:
    """The hash by which home and executor recognize that they mean the same statement by a number."""
    return request_hash("statement", [code, language])


def input_conf(inputs: Iterable[tuple[InputRef, str]]) -> dict[str, str]:
    """The settings that pass inputs, given with their local paths, to a session: one for each view."""
    return {PATH_PREFIX + view: path for ref, path in inputs for view in ref.views}


# --- policy of the executor ---------------------------------------------------------------


def policy_refusal(jobs: JobsSection, home: str, home_name: str, *, is_home: bool, named: bool) -> str:
    """Why this island does not run a job of `home`, naming all keys of island.toml that forbid it; "" if it does.

    `named`: an entry of `accept_from` names `home`.
    """
    if is_home:
        return ""
    keys = []
    if not named and "members" not in jobs.accept_from:
        keys.append("jobs.accept_from does not name it")
    if jobs.foreign_code == "none":
        keys.append('jobs.foreign_code is "none"')
    if not jobs.same_user:
        keys.append("jobs.same_user is false")
    if not keys:
        return ""
    return f"its administrator does not accept jobs of {home_name}: in its island.toml, {', and '.join(keys)}"


def envelope_problem(envelope: Envelope, sender: str, me: str) -> str:
    """Why an envelope from `sender` is refused, or ""."""
    if envelope.home != sender:
        return "only its home may offer a job"
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
    if bad := sorted(set(work.resources) - set(RESOURCES)):
        return f"a job of another island may not request {', '.join(bad)[:500]} there"
    if any(not ref.views or not all(_VIEW.fullmatch(view) for view in ref.views) for ref in work.inputs):
        return "an input has no view, or a view with an invalid name"
    if work.kind == "batch" and not (_SCRIPT.fullmatch(work.file_name) and work.file_hash):
        return "its file is missing, or its name is not the plain name of a Python file"
    if work.kind == "session" and (work.file_name or work.file_hash):
        return "a session cannot have a file"
    if work.language not in STOCK_LANGUAGES or (work.language == "batch") != (work.kind == "batch"):
        return f"a {work.kind} cannot be of kind '{work.language[:40]}'"
    return ""


# --- reports of executors ---------------------------------------------------------------------


class _Result(msgspec.Struct):
    """The keys of Livy's output object that clients rely on."""

    status: Literal["ok", "error"]
    data: dict[str, Any] = {}
    ename: str | None = None
    evalue: str | None = None
    traceback: list[str] | None = None


_RESULT: Final = msgspec.json.Decoder(_Result)
_STATEMENT_STATES: Final = STATEMENT_ENDED | {"waiting", "running", "cancelling"}


def checked_report(report: JobReport, job: str, epoch: int) -> JobReport:
    """The report, with progress limited to 0..1, after all checks that are needed to store and show it.

    Raises `Malformed` if it is about another job or epoch, or has an unknown state or an output that is not Livy's.
    """
    if (report.job, report.epoch) != (job, epoch):
        raise Malformed("the report is about another job than the requested one")
    if report.state not in (SESSION_ENDED if report.ended else SESSION_ENDED | SESSION_ALIVE):
        raise Malformed(f"the report has the unexpected state {report.state[:40]!r}")
    return msgspec.structs.replace(report, statements=tuple(_checked_statement(each) for each in report.statements))


def is_foreign_statement(report: StatementReport, own: tuple[str, str] | None) -> bool:
    """Whether an executor reports a statement that home did not send. `own`: code and language of home's statement.

    An executor of an earlier version reports no hash.
    """
    return own is None or report.code_hash not in ("", statement_hash(*own))


def _checked_statement(report: StatementReport) -> StatementReport:
    if report.state not in _STATEMENT_STATES:
        raise Malformed(f"a statement has the unexpected state {report.state[:40]!r}")
    if report.output:
        try:
            _RESULT.decode(report.output)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise Malformed(f"the output of a statement is not in Livy's format: {str(error)[:200]}") from error
    return msgspec.structs.replace(report, progress=min(1.0, max(0.0, report.progress)))  # NaN becomes 0


# --- results -------------------------------------------------------------------------------


def cut_output(output: str, limit: int = MAX_OUTPUT) -> str:
    """Livy's output object as JSON of at most about `limit` bytes. A notice in it says what was cut."""
    size = len(output.encode("utf-8", "surrogatepass"))
    if size <= limit:
        return output
    value = json.loads(output)
    room = limit // 2
    if value.get("status") == "error":
        value["evalue"] = str(value.get("evalue", ""))[: room // 8] + f"\n[cut by island: {size} bytes]"
        value["traceback"] = [str(line)[:1000] for line in value.get("traceback", [])[:100]]
        return _json(value)
    data: dict[str, Any] = {}
    whole = value.get("data", {})
    for kind, content in whole.items():
        data.update(_cut_content(kind, content, room // max(4, len(whole)), size))
    value["data"] = data
    return _json(value)


def _cut_content(kind: str, content: Any, room: int, size: int) -> dict[str, Any]:
    notice = f"[cut by island: the output has {size} bytes; write it to a file, or select less]"
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        rows, used, kept = content["data"], 0, []
        for row in rows:
            used += len(_json(row)) * 2
            if used > room:
                break
            kept.append(row)
        text = f"[cut by island: {len(kept)} of {len(rows)} rows are kept; select less]"
        return {kind: {**content, "data": kept}, "text/plain": text}
    text = content if isinstance(content, str) else _json(content)
    if kind == "text/plain":
        return {kind: text[:room] + "\n" + notice}
    return {kind: content} if len(text) * 2 <= room else {"text/plain": notice}


def missing_table(output: str) -> str:
    """The name of the table or view that a failed statement did not find, or ""."""
    if '"error"' not in output[:4096] or ("NOT_FOUND" not in output and "not found" not in output):
        return ""
    value = json.loads(output)
    if value.get("status") != "error":
        return ""
    found = _NO_TABLE.search(str(value.get("evalue", "")))
    return (found[1] or found[2]).replace("`", "").strip(".") if found else ""


def suggest(table: str, datasets: Sequence[tuple[str, str]]) -> tuple[str, bool]:
    """The dataset `OWNER/NAME` that `table` probably names, or "". The flag is True if exactly one dataset matches."""
    wanted = plain_name(table).lower()
    names: dict[str, list[str]] = {}
    for owner, name in datasets:
        for view in {view_name(owner, name), plain_name(f"{owner}.{name}"), plain_name(name)}:
            names.setdefault(view.lower(), []).append(f"{owner}/{name}")
    if wanted in names:
        return names[wanted][0], len(names[wanted]) == 1
    near = difflib.get_close_matches(wanted, sorted(names), n=1, cutoff=0.8)
    return (names[near[0]][0], False) if near else ("", False)


def views_meant(table: str, inputs: Sequence[InputRef]) -> list[str]:
    """The full view names of the inputs whose dataset name is `table`, if several inputs share that name.

    In that case no view has the short name.
    """
    wanted = plain_name(table).lower()
    return [ref.views[0] for ref in inputs if len(ref.views) == 1 and plain_name(ref.name).lower() == wanted]


def with_hint(output: str, table: str, dataset: str, exact: bool, inputs: Sequence[str]) -> str:
    """The output of a failed statement, with the line of the conf that would make its table an input."""
    value = json.loads(output)
    line = f"{INPUTS_KEY} = {','.join([*inputs, dataset])}"
    which = f"`{table}` is the dataset {dataset}" if exact else f"`{table}` may mean the dataset {dataset}"
    text = f"{which}, which is not an input of this session. Open a session with this line in its conf: {line}"
    return _json(_with_message(value, text))


def with_views(output: str, table: str, views: Sequence[str]) -> str:
    """The output of a failed statement whose table name is ambiguous, with the unambiguous view names."""
    text = f"several inputs of this session are called `{table}`: write {' or '.join(views)}"
    return _json(_with_message(json.loads(output), text))


def _with_message(value: dict[str, Any], message: str) -> dict[str, Any]:
    text = f"island: {message}"
    value["evalue"] = f"{str(value.get('evalue', '')).rstrip()}\n{text}"
    value["traceback"] = [*value.get("traceback", []), f"{text}\n"]
    return value


def error_output(name: str, text: str) -> str:
    """A Livy output object for an error of island itself."""
    return _json({"status": "error", "execution_count": 0, "ename": name, "evalue": text, "traceback": [text + "\n"]})


def lost_statement(report: StatementReport, why: str) -> StatementReport:
    """The last report of a statement whose session is lost: `error` if it was running, `cancelled` if it waited."""
    if report.state in STATEMENT_ENDED:
        return report
    if report.state == "waiting":
        text = f"the statement was never run: {why}"
        return StatementReport(
            number=report.number, state="cancelled", output=error_output("NeverRun", text), progress=1.0
        )
    if report.state == "cancelling":
        return StatementReport(number=report.number, state="cancelled", progress=1.0, started=report.started)
    text = f"the statement was running when its session was lost; its result is lost: {why}"
    return StatementReport(
        number=report.number,
        state="error",
        output=error_output("SessionLost", text),
        progress=1.0,
        started=report.started,
    )


def session_state(executor_state: str, has_open_statements: bool) -> str:
    """The Livy state that home shows: an idle session with unfinished statements is `busy`."""
    return "busy" if executor_state == "idle" and has_open_statements else executor_state


def has_ended(state: str) -> bool:
    """Whether this Livy state is final: the session or batch will not run code again."""
    return state in SESSION_ENDED and state != "shutting_down"


def livy_log(engine_log: Sequence[str], notes: Sequence[str]) -> list[str]:
    """The log that a Livy client sees: the output streams of the engine, then the notes of island, newest last."""
    streams = list(engine_log) or ["stdout: ", "\nstderr: "]
    return [*streams, "\nisland: ", *notes[-LOG_LINES:]]


def short_log(lines: Sequence[str]) -> list[str]:
    """The last ten lines, including the headings, as a session's view shows them."""
    return list(lines[-10:])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
