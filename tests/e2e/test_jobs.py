"""Sessions and batches across two real daemons with real Spark: by the commands and by an unmodified Livy client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.cli.demo.demo_island import wait_for
from island.cli.session_prompt import Completer
from island.client import Api
from tests.servers.daemon import ServedIsland

pytestmark = [pytest.mark.e2e, pytest.mark.spark]


class Two:
    """`lick` has two datasets and accepts members' code; `laptop` has nothing and accepts nobody's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lick = ServedIsland(root, "lick", spark=True)
        self.laptop = ServedIsland(root, "laptop", dialled=False, spark=True)
        self.lick.configure("accept_from", '["members"]')
        self.lick.configure("foreign_code", '"any"')
        self.lick.configure("same_user", "true")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    found = Two(tmp_path_factory.mktemp("two"))
    try:
        found.lick.start()
        found.laptop.start()
        found.laptop.command("peer", "join", stdin=found.lick.command("peer", "invite"))
        numbers = found.root / "numbers"
        numbers.mkdir()
        pq.write_table(pa.table({"n": list(range(1000)), "half": [n / 2 for n in range(1000)]}), numbers / "a.parquet")
        nested = found.root / "nested.avro"
        schema = {
            "type": "record",
            "name": "R",
            "fields": [
                {"name": "id", "type": "long"},
                {"name": "inner", "type": {"type": "record", "name": "I", "fields": [{"name": "x", "type": "double"}]}},
                {"name": "raw", "type": ["null", "bytes"]},
            ],
        }
        with nested.open("wb") as file:
            rows = [{"id": n, "inner": {"x": n * 1.5}, "raw": b"\x00\xff" if n % 2 else None} for n in range(40)]
            fastavro.writer(file, fastavro.parse_schema(schema), rows)
        found.lick.command("dataset", "publish", str(numbers), "--name", "numbers")
        found.lick.command("dataset", "publish", str(nested), "--name", "nested.v1")
        wait_for(
            "both datasets at the laptop",
            lambda: True if len(found.laptop.json("dataset", "ls")) == 2 else None,
            90,
        )
        yield found
    finally:
        found.laptop.stop()
        found.lick.stop()


def job(place: ServedIsland, key: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = place.json("job", "ls")
    return next(row for row in rows if key in (row["job"], str(row["id"])))


def test_a_session_goes_to_its_data_and_its_results_stay(two: Two) -> None:
    opened = two.laptop.run(
        "session", "open", "--kind", "pyspark", "--input", "lick/numbers", "--input", "lick/nested.v1"
    )
    assert opened.returncode == 0, opened.stderr
    session = opened.stdout.strip()
    assert session.isdigit() and "lick" in opened.stderr

    def run(code: str, *more: str) -> str:
        done = two.laptop.run("session", "exec", session, code, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run("spark.table('lick__numbers').count()") == "1000"
    assert run("spark.table('numbers').selectExpr('sum(half)').first()[0]") == "249750.0"
    assert (
        run("spark.table('lick__nested_v1').where('raw IS NOT NULL').selectExpr('sum(inner.x)').first()[0]") == "600.0"
    )
    assert run("spark.read.parquet(spark.conf.get('spark.island.path.lick__numbers')).count()") == "1000"
    answer = json.loads(run("SELECT max(n) AS top FROM numbers", "--kind", "sql", "--json"))
    assert answer["output"]["data"]["application/json"]["data"] == [[999]]

    names = Completer(Api(two.laptop.home_endpoint()), int(session), "pyspark").candidates(
        "spark.createD", "spark.createD"
    )
    assert "spark.createDataFrame" in names

    failed = two.laptop.run("session", "exec", session, "1/0")
    assert failed.returncode == 1 and "ZeroDivisionError" in failed.stderr

    row = next(r for r in two.laptop.json("job", "ls") if str(r["id"]) == session and r["kind"] == "session")
    assert {"id", "job", "kind", "state", "island", "owner", "inputs"} <= set(row)
    assert (row["island"], row["state"]) == ("lick", "idle")
    by_prefix = two.laptop.json("job", "show", row["job"][:20])
    assert by_prefix["job"] == row["job"]

    considered = {r["island"]: r for r in two.laptop.json("job", "explain", row["job"])}
    assert set(considered) == {"lick", "laptop"}
    assert considered["lick"]["chosen"] and not considered["laptop"]["chosen"]
    assert considered["laptop"]["missing_bytes"] > 0 == considered["lick"]["missing_bytes"]
    assert considered["lick"]["observed_start_s"] > 0 and considered["lick"]["observed_compute_s"] > 0
    assert "compute" in two.laptop.run("job", "explain", row["job"]).stdout.partition("observed at lick: ")[2]
    assert {row["term"]: row["jobs"] for row in two.laptop.json("job", "accuracy")}["start"] == 1

    assert two.laptop.run("session", "close", session).returncode == 0
    two.laptop.stop()
    two.laptop.start()
    kept = two.laptop.json("job", "show", row["job"])
    assert kept["state"] not in {"idle", "busy"}
    statements = Api(two.laptop.home_endpoint()).get(f"/api/v1/jobs/{row['job']}/statements")
    texts = [s["output"]["data"].get("text/plain") for s in statements if s["output"]["status"] == "ok"]
    assert texts[0] == "1000"


def test_a_table_that_is_no_input_names_the_line_to_add(two: Two) -> None:
    opened = two.laptop.run("session", "open", "--kind", "sql")
    assert opened.returncode == 0, opened.stderr
    session = opened.stdout.strip()
    try:
        done = two.laptop.run("session", "exec", session, "SELECT count(*) FROM lick__numbers")
        assert done.returncode == 1
        assert "spark.island.inputs" in done.stderr and "lick/numbers" in done.stderr
        assert job(two.laptop, session)["island"] == "laptop"  # no inputs: nothing draws it away
    finally:
        two.laptop.run("session", "close", session)


def test_a_batch_runs_at_another_island_and_tells_its_end(two: Two, tmp_path: Path) -> None:
    script = tmp_path / "count.py"
    script.write_text(
        "import sys\n"
        "from pyspark.sql import SparkSession\n"
        "spark = SparkSession.builder.getOrCreate()\n"
        "print('COUNTED', spark.table('lick__numbers').where(f'n < {sys.argv[1]}').count())\n"
    )
    # After the tests before this one, the estimates for the two islands may differ by less than their load.
    done = two.laptop.run("job", "submit", str(script), "--input", "lick/numbers", "--arg", "10", "--at", "lick")
    assert done.returncode == 0, done.stderr
    batch = done.stdout.strip()
    followed = two.laptop.run("job", "logs", batch, "--follow")
    assert followed.returncode == 0 and followed.stdout.count("COUNTED 10") == 1, followed.stderr
    logs = two.laptop.run("job", "logs", batch).stdout
    assert "COUNTED 10" in logs
    row = job(two.laptop, batch)
    assert (row["kind"], row["state"], row["island"]) == ("batch", "success", "lick")

    script.write_text("raise SystemExit(3)\n")
    failed = two.laptop.run("job", "submit", str(script), "--wait", "--memory", "600m")
    assert failed.returncode == 1 and "batch" in failed.stderr
    failing = failed.stdout.strip()
    assert job(two.laptop, failing)["state"] in {"dead", "error"}

    script.write_text("import time\ntime.sleep(300)\n")
    late = two.laptop.run("job", "submit", str(script), "--wait", "--timeout", "0.5")
    assert late.returncode == 1 and "after 0.5 s; it goes on" in late.stderr
    assert two.laptop.run("job", "cancel", late.stdout.strip()).returncode == 0


def test_a_job_that_nobody_may_run_says_which_key_forbids_it(two: Two) -> None:
    """lick's user asks for the laptop, which accepts no foreign code."""
    done = two.lick.run("session", "open", "--kind", "sql", "--at", "laptop")
    assert done.returncode == 1
    session = next(r for r in two.lick.json("job", "ls") if r["kind"] == "session")
    reasons = {r["island"]: r["reason"] for r in two.lick.json("job", "explain", session["job"])}
    assert "accept_from" in reasons["laptop"] or "foreign_code" in reasons["laptop"]


def test_an_unmodified_livy_client_cancels(two: Two) -> None:
    from livy import LivySession, SessionKind

    with LivySession.create(
        two.laptop.url,
        auth=("anybody", two.laptop.user_token),
        kind=SessionKind.PYSPARK,
        spark_conf={"spark.island.inputs": "lick/numbers"},
        echo=False,
    ) as session:
        assert session.download("spark.table('numbers').where('n < 3')").n.tolist() == [0, 1, 2]
        running = session.client.create_statement(session.session_id, "import time; time.sleep(300)")
        # This client has no call for it; sparkmagic posts the same.
        Api(two.laptop.home_endpoint()).post(f"/sessions/{session.session_id}/statements/{running.statement_id}/cancel")

        def stopped() -> bool | None:
            state = session.client.get_statement(session.session_id, running.statement_id).state.value
            return True if state in {"cancelled", "error", "available"} else None

        wait_for("the statement to be cancelled", stopped, 90)
        assert session.run("'alive'").text == "'alive'"
