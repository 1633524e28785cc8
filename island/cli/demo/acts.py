"""The seven acts of the demo (eight with alerts), in order; each compares its results with expected ones.

Three islands: `virgo` has the galaxies as Parquet, `orion` has the clusters and nebulae as
Avro, `laptop` has no data and no peer port. All requests are made at the laptop.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from island.cli.demo import data, sky
from island.cli.demo.data import Row
from island.cli.demo.demo_island import DemoIsland, wait_for
from island.cli.demo.stage import Stage
from island.errors import IslandError

NEBULAE_WHERE = "type IN ('PN', 'SNR', 'HII') AND (vmag < 13.5 OR vmag IS NULL)"
NEBULAE_CIRCLE = (280.0, 10.0, 60.0)
ALERTS_WHERE = "tns <> ''"
PORTIONS = 12


@dataclass(slots=True)
class Scene:
    """State shared by the acts."""

    stage: Stage
    root: Path
    rows: list[Row]
    alerts: list[Path]
    virgo: DemoIsland
    orion: DemoIsland
    laptop: DemoIsland
    sessions: dict[str, Any] = field(default_factory=dict)
    portions: list[Callable[[], None]] = field(default_factory=list)

    @property
    def places(self) -> list[DemoIsland]:
        return [self.virgo, self.orion, self.laptop]

    @property
    def galaxies(self) -> list[Row]:
        return data.of_types(self.rows, data.GALAXIES)

    @property
    def clusters(self) -> list[Row]:
        return data.of_types(self.rows, data.CLUSTERS)

    @property
    def stream(self) -> str:
        """Name of the source at orion."""
        return "alerts" if self.alerts else "nebulae"


def play(root: Path, alerts: list[Path], stay: Callable[[], None] | None) -> list[str]:
    """Run all acts in the folder `root`; return a line for each result that differs.

    `stay`, if given, is called after the last act, while the islands are still running.
    """
    root.mkdir(parents=True, exist_ok=True)
    stage = Stage()
    stage.say("Three islands on this machine: virgo (galaxies), orion (clusters and nebulae), laptop (nothing).")
    stage.say(f"Input: {data.CREDIT}.")
    rows = data.catalogue()
    virgo, orion, laptop = (
        DemoIsland(root, "virgo"),
        DemoIsland(root, "orion"),
        DemoIsland(root, "laptop", dialled=False),
    )
    scene = Scene(stage, root, rows, alerts, virgo, orion, laptop)
    try:
        prepare(scene)
        for act in (one_list, words_and_sky, shapley, virgo_cluster, colours, stream, killed):
            act(scene)
        if alerts:
            supernova(scene)
        close_sessions(scene)
        ending(scene, staying=stay is not None)
        if stay:
            stay()
    finally:
        for place in scene.places:
            place.stop()
    return stage.differences


def prepare(scene: Scene) -> None:
    """Write the input files, start the islands, join them, publish the datasets."""
    galaxies, clusters = scene.root / "data-virgo" / "galaxies", scene.root / "data-orion" / "clusters"
    galaxies.mkdir(parents=True)
    clusters.mkdir(parents=True)
    rows = scene.galaxies
    for part in range(4):
        chosen = [row for row in rows if (0 if row["ra"] is None else int(row["ra"] // 90)) == part]
        data.write_parquet(chosen, galaxies / f"ra-{part * 90:03d}.parquet")
    data.write_avro(scene.clusters, clusters / "clusters.avro")
    for place in (scene.virgo, scene.orion):
        # The settings with which an administrator allows code of other members to run under the daemon's account.
        place.configure("accept_from", '["members"]')
        place.configure("foreign_code", '"any"')
        place.configure("same_user", "true")
    for place in scene.places:
        place.start()
    for guest in (scene.orion, scene.laptop):
        guest.command("peer", "join", stdin=scene.virgo.command("peer", "invite"))
    about = ("--licence", data.LICENCE, "--description", data.CREDIT)
    scene.virgo.command(
        "dataset", "publish", str(galaxies), "--name", "galaxies", "--title", "Galaxies of the NGC and IC", *about
    )
    scene.orion.command(
        "dataset", "publish", str(clusters / "clusters.avro"), "--name", "clusters",
        "--title", "Star clusters and nebulae of the NGC and IC", *about,
    )  # fmt: skip


def one_list(scene: Scene) -> None:
    """Act 1: all three islands list the same servers and datasets."""
    stage = scene.stage
    stage.act(1, "Three islands know the same servers and the same data")

    def listed(servers: list[dict[str, Any]], datasets: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
        rows = [(d["island"], d["name"], d["format"], d["rows"], d["bytes"]) for d in datasets]
        return sorted((s["island"], s["kind"], s["url"]) for s in servers), sorted(rows)

    def agreed() -> bool | None:
        views = [listed(place.get("/api/v1/servers"), place.get("/api/v1/datasets")) for place in scene.places]
        complete = all(len(v[0]) >= 3 and len(v[1]) >= 2 for v in views)
        return True if complete and views[0] == views[1] == views[2] else None

    wait_for("the three islands to agree on servers and datasets", agreed, 60)
    servers, datasets = listed(scene.laptop.json("server", "ls"), scene.laptop.json("dataset", "ls"))
    stage.typed("laptop", "island", "server", "ls")
    stage.table(("island", "kind", "url"), servers)
    stage.typed("laptop", "island", "dataset", "ls")
    stage.table(("island", "name", "format", "rows", "bytes"), [(*d[:3], f"{d[3]:,}", f"{d[4]:,}") for d in datasets])
    stage.say("virgo, orion and laptop have the same two lists, without a central server. No data moved.")
    rows = {d[1]: d[3] for d in datasets}
    stage.same("rows of galaxies", len(scene.galaxies), rows.get("galaxies"))
    stage.same("rows of clusters", len(scene.clusters), rows.get("clusters"))


def words_and_sky(scene: Scene) -> None:
    """Act 2: a search by words and sky."""
    stage = scene.stage
    stage.act(2, "Search by words and sky: which datasets cover the Virgo cluster?")
    region = "circle 187.7 12.4 5"
    stage.typed("laptop", "island", "dataset", "search", "--region", region)
    found = scene.laptop.json("dataset", "search", "--region", region)
    stage.table(("island", "name", "title"), [(d["island"], d["name"], d["title"]) for d in found])
    stage.same("datasets towards Virgo", ["galaxies"], [d["name"] for d in found])
    words = scene.laptop.json("dataset", "search", "star", "clusters")
    stage.typed("laptop", "island", "dataset", "search", "star", "clusters")
    stage.table(("island", "name", "title"), [(d["island"], d["name"], d["title"]) for d in words])
    stage.same("datasets about star clusters", ["clusters"], [d["name"] for d in words])
    stage.say("The laptop answered from its own copy of the catalog, without a request to another island.")


def _remote(scene: Scene, name: str, inputs: str, code: str) -> str:
    """Run code with an unmodified Livy client at the laptop's gateway, in the session `name`; return its output.

    The session is created with `inputs` if it does not exist, and stays open.
    """
    from livy import LivySession, SessionKind

    stage, laptop = scene.stage, scene.laptop
    stage.typed("laptop", f'LivySession.create("{laptop.url}", spark_conf={{"spark.island.inputs": "{inputs}"}})')
    if name not in scene.sessions:
        session = LivySession.create(
            laptop.url,
            auth=("laptop", laptop.user_token),
            kind=SessionKind.PYSPARK,
            spark_conf={"spark.island.inputs": inputs},
            echo=False,
        )
        scene.sessions[name] = session
        stage.asked += 1
        session.wait()
    output = scene.sessions[name].run(code)
    stage.asked += 1
    output.raise_for_status()
    return str(output.text).strip()


def _job_of(scene: Scene, session: Any) -> dict[str, Any]:
    jobs = scene.laptop.get("/api/v1/jobs")
    return next(job for job in jobs if job["id"] == session.session_id and job["kind"] != "batch")


def _explained(scene: Scene, job: dict[str, Any]) -> None:
    rows = scene.laptop.json("job", "explain", job["job"])
    scene.stage.typed("laptop", "island", "job", "explain", job["job"])
    columns = ("island", "chosen", "seconds", "round_trip_s", "bandwidth", "wait_s", "missing_bytes", "reason")
    present = [c for c in columns if any(row.get(c) is not None for row in rows)]
    scene.stage.table(present, [[_cell(row.get(c)) for c in present] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _local(scene: Scene, name: str) -> dict[str, Any]:
    found: dict[str, Any] = scene.laptop.get(f"/api/v1/datasets/{name}")
    return found


def shapley(scene: Scene) -> None:
    """Act 3: the direction of the Galactic centre as in Shapley (1918), with an unmodified Livy client."""
    stage = scene.stage
    stage.act(3, "Shapley 1918: where is the centre of the Galaxy?")
    text = _remote(scene, "clusters", "orion/clusters", sky.SHAPLEY.replace("VIEW", "orion__clusters"))
    expected = sky.shapley(scene.clusters)
    found = [float(word) for word in text.split()]
    for what, want, got in zip(("clusters", "mean ra", "mean dec", "distance"), expected, found, strict=True):
        stage.same(f"Shapley: {what}", want, got, tolerance=1e-5)
    stage.say(
        f"{found[0]:.0f} globular clusters of the Galaxy; mean direction ra {found[1]:.2f}°, dec {found[2]:.2f}°,"
    )
    stage.say(f"{found[3]:.2f}° from the centre of the Galaxy (266.405°, −28.936°).")
    job = _job_of(scene, scene.sessions["clusters"])
    stage.same("Shapley ran at", "orion", job["island"])
    view = _local(scene, "orion/clusters")
    stage.data_moved(
        view["bytes_local"], view["bytes"], "to the laptop", "the job went to orion, where the clusters are"
    )


def virgo_cluster(scene: Scene) -> None:
    """Act 4: velocities in the Virgo cluster, and why the job ran where it ran."""
    stage = scene.stage
    stage.act(4, "Virgo: how fast do the galaxies around M87 move?")
    text = _remote(scene, "galaxies", "virgo/galaxies", sky.VIRGO.replace("VIEW", "virgo__galaxies"))
    expected = sky.virgo(scene.galaxies)
    found = [float(word) for word in text.split()]
    for what, want, got in zip(("galaxies", "median", "dispersion"), expected, found, strict=True):
        stage.same(f"Virgo: {what}", want, got, tolerance=1e-5)
    stage.say(f"{found[0]:.0f} galaxies within 6° of M87; median {found[1]:,.0f} km/s, dispersion {found[2]:.0f} km/s.")
    job = _job_of(scene, scene.sessions["galaxies"])
    stage.same("Virgo ran at", "virgo", job["island"])
    _explained(scene, job)
    view = _local(scene, "virgo/galaxies")
    stage.data_moved(
        view["bytes_local"], view["bytes"], "to the laptop", "the job went to virgo, where the galaxies are"
    )


def colours(scene: Scene) -> None:
    """Act 5: pandas reads three columns of a remote dataset; the second reading transfers nothing."""
    stage = scene.stage
    stage.act(5, "Colours: pandas at the laptop reads three columns of galaxies that are at virgo")
    url = "island://virgo/galaxies"
    stage.typed("laptop", "python", "-c", f'pandas.read_parquet("{url}", columns=["hubble", "bmag", "kmag"])')
    before = _local(scene, "virgo/galaxies")["bytes_moved"]
    found: list[list[str]] = []
    moved: list[int] = []
    for _ in range(2):
        found.append(_python(scene.laptop, sky.COLOURS, url).split())
        after = _local(scene, "virgo/galaxies")
        moved.append(after["bytes_moved"] - before)
        before = after["bytes_moved"]
    for kind, want, got in zip(sky.KINDS, sky.colours(scene.galaxies), found[0][1::2], strict=True):
        stage.same(f"B−K of {kind}", want, float(got), tolerance=1e-5)
    stage.same("the second reading", found[0], found[1])
    stage.table(("Hubble type", *found[0][::2]), [("median B−K", *(f"{float(v):.2f}" for v in found[0][1::2]))])
    stage.data_moved(moved[0], after["bytes"], "virgo to laptop", "the footers and three columns, verified and cached")
    stage.data_moved(
        moved[1], after["bytes"], "virgo to laptop", "the second reading, in a new process, used the cached data"
    )
    stage.same("bytes moved by the second reading", 0, moved[1])
    stage.same("the first reading moved less than half", True, 0 < moved[0] < after["bytes"] / 2)


def _python(place: DemoIsland, code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        env=place.environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode:
        raise IslandError(f"a Python program at {place.name} failed: {done.stderr.strip()[-600:]}")
    return done.stdout


def stream(scene: Scene) -> None:
    """Act 6: files that are added to a folder at orion are delivered as rows into a dataset of the laptop."""
    stage, name = scene.stage, scene.stream
    stage.act(6, f"A subscription: {name} added to a folder at orion are delivered to the laptop")
    watched = scene.root / "data-orion" / "incoming"
    watched.mkdir()
    scene.orion.command("source", "add", "folder", str(watched), "--name", name)
    wait_for("the laptop to list the source", lambda: _named(scene.laptop.get("/api/v1/sources"), name), 30)
    region = () if scene.alerts else ("--region", "circle " + " ".join(f"{value:g}" for value in NEBULAE_CIRCLE))
    where = ALERTS_WHERE if scene.alerts else NEBULAE_WHERE
    words = (
        "subscription",
        "add",
        f"orion/{name}",
        "--where",
        where,
        *region,
        "--from",
        "beginning",
        "--into",
        _into(scene),
    )
    stage.typed("laptop", "island", *words)
    scene.laptop.command(*words)
    scene.portions = _portions(scene, watched)
    half = len(scene.portions) // 2
    for drop in scene.portions[:half]:
        drop()
    count = len(_expected(scene, half))
    wait_for("the first half of the stream", lambda: _listed_rows(scene, count), 60)
    stage.same_rows("delivered", _expected(scene, half), _delivered(scene))
    _channels(scene)


def _named(rows: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((row for row in rows if row["name"] == name), None)


def _into(scene: Scene) -> str:
    return "supernovae" if scene.alerts else "my-nebulae"


def _portions(scene: Scene, watched: Path) -> list[Callable[[], None]]:
    """Return the stream in portions: functions that each add one complete file to the watched folder."""
    if scene.alerts:
        staging = scene.root / "data-orion" / "staged"
        staging.mkdir()
        files = data.split_alerts(scene.alerts, staging, 4)
        return [lambda path=path: _drop(path, watched) for path in files]  # type: ignore[misc]  # bound per file
    nebulae = data.of_types(scene.rows, data.NEBULAE)
    size = -(-len(nebulae) // PORTIONS)

    def write(number: int) -> None:
        data.write_parquet(nebulae[number * size : (number + 1) * size], watched / f"night-{number:02d}.parquet")

    return [lambda number=number: write(number) for number in range(PORTIONS)]  # type: ignore[misc]  # bound per file


def _drop(path: Path, watched: Path) -> None:
    partial = watched / f".{path.name}.part"
    partial.write_bytes(path.read_bytes())
    partial.rename(watched / path.name)


def _expected(scene: Scene, portions: int) -> list[str]:
    """Compute directly which rows of the first portions satisfy the conditions; return their names."""
    if scene.alerts:
        rows = data.alerts_in(scene.alerts)
        return [str(row["objectId"]) for row in rows[: portions * 4] if row["tns"]]
    nebulae = data.of_types(scene.rows, data.NEBULAE)
    size = -(-len(nebulae) // PORTIONS)
    return [
        str(row["name"])
        for row in nebulae[: portions * size]
        if row["type"] in ("PN", "SNR", "HII")
        and (row["vmag"] is None or row["vmag"] < 13.5)
        and sky.within(row, NEBULAE_CIRCLE[:2], NEBULAE_CIRCLE[2])
    ]


def _listed_rows(scene: Scene, count: int) -> bool | None:
    """True once the laptop lists its dataset with at least `count` rows."""
    found = _named(scene.laptop.get("/api/v1/datasets"), _into(scene))
    return True if found and found["rows"] >= count else None


def _delivered(scene: Scene) -> list[str]:
    """Read the names of the rows in the laptop's dataset with pandas."""
    column = "objectId" if scene.alerts else "name"
    code = (
        "import pandas, sys\n"
        "t = pandas.read_parquet(sys.argv[1], columns=[sys.argv[2]])\n"
        "print('\\n'.join(t[sys.argv[2]]))\n"
    )
    return _python(scene.laptop, code, f"island://laptop/{_into(scene)}", column).split()


def _channels(scene: Scene) -> None:
    scene.stage.typed("laptop", "island", "channel", "ls")
    rows = scene.laptop.json("channel", "ls")
    columns = [c for c in ("source", "into", "state", "rows", "bytes", "lag", "rate") if any(c in row for row in rows)]
    scene.stage.table(columns, [[_cell(row.get(c)) for c in columns] for row in rows])


def killed(scene: Scene) -> None:
    """Act 7: orion is killed while it streams and runs a session; no accepted row or finished result is lost."""
    stage, laptop, orion = scene.stage, scene.laptop, scene.orion
    stage.act(7, "orion is killed (SIGKILL) while it streams and runs a session, and started again")
    session = scene.sessions["clusters"]
    text = session.run("6 * 7").text
    stage.same("a finished statement", "42", str(text).strip())
    running = session.client.create_statement(session.session_id, "import time; time.sleep(600)")
    half = len(scene.portions) // 2
    for drop in scene.portions[half : half + 1]:
        drop()
    orion.kill()
    stage.say("orion was killed with kill -9 during a statement, just after a file was added.")
    for drop in scene.portions[half + 1 :]:
        drop()
    kept = session.client.get_statement(session.session_id, running.statement_id - 1)
    stage.same("the finished result, read at the laptop while orion is down", "42", str(kept.output.text).strip())
    orion.start()
    stage.say("orion is running again, on the same ports.")
    total = len(scene.portions)
    count = len(_expected(scene, total))
    wait_for("the rest of the stream", lambda: _listed_rows(scene, count), 90)
    stage.same_rows("delivered after the crash", _expected(scene, total), _delivered(scene))
    again = session.client.get_statement(session.session_id, running.statement_id - 1)
    stage.same("the finished result after the restart", "42", str(again.output.text).strip())

    def ended() -> dict[str, Any] | None:
        job = _job_of(scene, session)
        return job if job["state"] in {"dead", "error", "killed"} else None

    job = wait_for("the laptop to learn that the session died", ended, 60)
    stage.typed("laptop", "island", "job", "logs", job["job"])
    for line in laptop.command("job", "logs", job["job"]).strip().splitlines()[-2:]:
        stage.say(line)
    stage.same("the lost session is reported as", "dead", job["state"])


def supernova(scene: Scene) -> None:
    """Act 8, with alerts: which known supernova is within 1′ of an NGC galaxy?"""
    stage = scene.stage
    stage.act(8, "A join of the delivered alerts with the galaxies of virgo: is there a supernova in an NGC galaxy?")
    views = sky.MATCH.replace("ALERTS", "laptop__supernovae").replace("GALAXIES", "virgo__galaxies")
    before = _local(scene, "virgo/galaxies")["bytes_moved"]
    text = _remote(scene, "match", "laptop/supernovae,virgo/galaxies", views)
    alerts = [row for row in data.alerts_in(scene.alerts) if row["tns"]]
    expected = sky.match(alerts, scene.galaxies)
    stage.same("matches", [line.split()[:3] for line in expected], [line.split()[:3] for line in text.splitlines()])
    for line in text.splitlines():
        alert, kind, galaxy, distance = line.split()
        stage.say(f"{alert} ({kind.replace('_', ' ')}) is {float(distance):.2f}′ from {galaxy}.")
    job = _job_of(scene, scene.sessions["match"])
    _explained(scene, job)
    view = _local(scene, "virgo/galaxies")
    if job["island"] == "laptop":
        why = "the missing part of galaxies was transferred to the job, because running it at virgo cost no less"
        stage.data_moved(view["bytes_moved"] - before, view["bytes"], "virgo to laptop", why)
    else:
        stage.say(f"The job ran at {job['island']}, and the alerts were transferred to it.")


def close_sessions(scene: Scene) -> None:
    """Close the sessions that are still open."""
    for session in scene.sessions.values():
        session.close()


def ending(scene: Scene, *, staying: bool) -> None:
    """Print a summary; if `staying`, also the URLs, the token files and commands to try."""
    stage, laptop = scene.stage, scene.laptop
    moved, total = sum(m for m, _ in stage.moved), max((t for _, t in stage.moved), default=0)
    stage.say("")
    stage.say(f"requests: {stage.asked}, with Livy, pandas and the command, all at the laptop")
    stage.say(f"moved:    {moved:,} bytes in total; the largest dataset has {total:,} bytes")
    stage.say(
        f"results:  {stage.compared} compared, {len(stage.differences)} differ; one island was killed and restarted"
    )
    if not staying:
        return
    stage.say("")
    for place in scene.places:
        stage.say(f"{place.name:<8} {place.url}   tokens: {place.home}/token, {place.home}/token.user")
    stage.say("")
    stage.say("Commands to try in another terminal (run the export first):")
    command = Path(sys.executable).with_name("island")
    for line in _suggestions(laptop):
        stage.say(line.replace("island ", f"{command} ", 1) if line.startswith("island ") else line)
    stage.say("Ctrl-C stops all three islands.")


def _suggestions(laptop: DemoIsland) -> Sequence[str]:
    return (
        f"export ISLAND_HOME={laptop.home}",
        "island dataset search --column radvel --region 'circle 187.7 12.4 5'",
        "island dataset show virgo/galaxies",
        "island session open --kind sql --input orion/clusters",
        "island job ls",
        "island journal --verify",
    )
