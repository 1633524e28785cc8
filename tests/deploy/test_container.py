"""The image, the composition and the manifests: their files are consistent, and their scripts run as real processes.

The image itself is built and run by hand, because that takes minutes: deploy/README.md says with which result.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from island import config
from island.cli.demo.demo_island import free_ports, wait_for
from island.kernel.db import Database
from tests.conftest import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
CONTAINER = DEPLOY / "container"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "island.yaml").read_text("utf-8")))
LIVY = "http://127.0.0.1:9"
ISLANDS = ("kiso", "ondrejov", "laurel")


def _instructions() -> list[tuple[str, str]]:
    """The instructions of the Containerfile: keyword and the rest, continued lines joined."""
    text = (CONTAINER / "Containerfile").read_text("utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line.strip()]


def _of(keyword: str) -> list[str]:
    return [rest for word, rest in _instructions() if word == keyword]


def test_the_image_runs_without_root() -> None:
    assert _of("USER") == ["10001:10001"]
    assert _of("VOLUME") == ["/data"] and _of("ENTRYPOINT") == ['["entrypoint"]']
    assert "healthcheck" in _of("HEALTHCHECK")[0]


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    kept = {line[1:] for line in (REPOSITORY / ".containerignore").read_text("utf-8").splitlines() if line[:1] == "!"}
    assert (REPOSITORY / ".dockerignore").read_text("utf-8") == (REPOSITORY / ".containerignore").read_text("utf-8")
    sources = [word for rest in _of("COPY") if "--from" not in rest for word in rest.split()[:-1] if word[:2] != "--"]
    assert sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert any(source == each or source.startswith(f"{each}/") for each in kept), source


def test_the_wheel_of_the_image_is_built_by_a_package_with_a_hash() -> None:
    [command] = [rest.split("&&")[0] for rest in _of("RUN") if "build.lock" in rest]
    words = shlex.split(command)[: shlex.split(command).index(">")]
    chosen = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=True).stdout
    assert re.fullmatch(r"setuptools==[0-9.]+( *\\\n +--hash=sha256:[0-9a-f]{64})+\n", chosen)


def test_the_composition_refers_to_what_it_defines() -> None:
    assert {*ISLANDS, "data", *(f"setup-{name}" for name in ISLANDS)} == set(SERVICES)
    for name, service in SERVICES.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["user"] == "10001:10001", name
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] in {"service_healthy", "service_completed_successfully"}
            assert ("healthcheck" in SERVICES[needed]) == (how["condition"] == "service_healthy")
        network = service.get("network_mode", "")
        assert not network.startswith("service:") or network.removeprefix("service:") in SERVICES
        for source in (volume.split(":")[0] for volume in service["volumes"]):
            assert source in COMPOSE["volumes"] or (DEPLOY / "compose" / source).is_dir()
        for word in service.get("entrypoint", []):
            assert not word.startswith("/setup/") or (DEPLOY / "compose" / word.removeprefix("/setup/")).is_file()
    for name in ISLANDS:  # only a setup deletes the invitation that it has used; the islands can read what is there
        assert "example:/example" in SERVICES[f"setup-{name}"]["volumes"]
        assert "example:/example:ro" in SERVICES[name]["volumes"]
    build = SERVICES["data"]["build"]
    assert (DEPLOY / "compose" / build["context"]).resolve() == REPOSITORY
    assert (REPOSITORY / build["dockerfile"]).is_file()


def _environment(home: Path, more: Mapping[str, str]) -> dict[str, str]:
    """What the image sets, with the programs of this environment."""
    programs = f"{Path(sys.executable).parent}:{CONTAINER}:{os.environ['PATH']}"
    return {**os.environ, "PATH": programs, "ISLAND_HOME": str(home), "XDG_CACHE_HOME": f"{home}-cache", **more}


@contextmanager
def _container(home: Path, more: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Run the image's entry point as a process, until its health check succeeds; the environment is that of both."""
    environment = _environment(home, more)
    log = home.with_suffix(".log")
    with log.open("ab") as file:
        process = subprocess.Popen(["entrypoint", "run"], env=environment, stdin=subprocess.DEVNULL, stderr=file)

    def healthy() -> bool | None:
        assert process.poll() is None, log.read_text("utf-8")[-2000:]
        checked = subprocess.run(
            ["healthcheck", "/readyz"], env=environment, capture_output=True, timeout=60, check=False
        )
        return True if checked.returncode == 0 else None

    try:
        wait_for("the container to be healthy", healthy, 90)
        yield environment
    finally:
        process.terminate()
        process.wait(40)


def _run(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-1000:]}"
    return done.stdout


def test_a_first_start_without_a_name_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        ["entrypoint"], env=_environment(tmp_path / "home", {}), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "ISLAND_NAME" in done.stderr
    assert not (tmp_path / "home").exists()


def test_the_health_check_fails_if_no_daemon_answers(tmp_path: Path) -> None:
    [user] = free_ports(1)
    environment = _environment(tmp_path / "home", {})
    _run(["island", "init", str(tmp_path / "home"), "--name", "kiso", "--listen", f"127.0.0.1:{user}"], environment)
    done = subprocess.run(["healthcheck"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "refused" in done.stderr


def test_the_health_check_without_a_home_folder_says_so_in_a_line(tmp_path: Path) -> None:
    environment = _environment(tmp_path / "none", {})
    done = subprocess.run(["healthcheck"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "there is no island at" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.e2e
def test_the_composition_makes_an_archipelago_of_three_islands(tmp_path: Path) -> None:
    """Runs the commands of each service as a process, in the order of their dependencies."""
    example = tmp_path / "example"
    example.mkdir()
    ports = {name: free_ports(2) for name in ISLANDS}

    def start(name: str) -> dict[str, str]:
        user, peer = (f"127.0.0.1:{port}" for port in ports[name])
        given = SERVICES[name]["environment"]
        assert given["ISLAND_ADVERTISE"] == f"{name}:8991"
        # One machine instead of three: other ports, and a Livy that does not answer instead of three engines.
        more = {"ISLAND_ADVERTISE": peer, "ISLAND_LISTEN": user, "ISLAND_PEER_LISTEN": peer, "ISLAND_LIVY_URL": LIVY}
        return stack.enter_context(_container(tmp_path / name, {**given, **more}))

    def command(service: str) -> list[str]:
        paths = {"/setup/": f"{DEPLOY}/compose/", "/data": str(example)}
        words = list(SERVICES[service]["entrypoint"])
        for old, new in paths.items():
            words = [new + word.removeprefix(old) if word.startswith(old) else word for word in words]
        return words

    with ExitStack() as stack:
        _run(command("data"), _environment(tmp_path, {}))
        environments = {name: start(name) for name in ISLANDS}
        for name in (*ISLANDS, "kiso", "laurel"):  # run again, a setup changes nothing
            _run(command(f"setup-{name}"), {**environments[name], "EXAMPLE": str(example)})
        assert sorted(path.name for path in example.iterdir()) == ["clusters", "galaxies", "nebulae"]
        for name in ISLANDS:
            found = wait_for("all datasets", partial(_datasets, environments[name]), 60)
            assert found == {("kiso", "galaxies"), ("ondrejov", "clusters"), ("laurel", "nebulae")}
        key = (tmp_path / "kiso" / "key").read_bytes()
    with _container(tmp_path / "kiso", {}):  # a later start needs no variables, and keeps the island
        assert (tmp_path / "kiso" / "key").read_bytes() == key


def _datasets(environment: Mapping[str, str]) -> set[tuple[str, str]] | None:
    found = {
        (row["island"], row["name"]) for row in yaml.safe_load(_run(["island", "dataset", "ls", "--json"], environment))
    }
    return found if len(found) >= len(ISLANDS) else None


def _manifest(kind: str, name: str = "island") -> dict[str, Any]:
    [found] = [each for each in MANIFESTS if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def test_the_pod_is_restricted() -> None:
    """The rules of the Pod Security Standard `restricted`."""
    pod = _manifest("StatefulSet")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in (*pod["initContainers"], *pod["containers"]):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False and security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "secret"}


def test_the_pod_that_restores_is_that_of_the_island() -> None:
    restore: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes" / "restore.yaml").read_text("utf-8"))["spec"]
    state = _manifest("StatefulSet")["spec"]
    pod = state["template"]["spec"]
    assert restore["securityContext"] == pod["securityContext"] and restore["automountServiceAccountToken"] is False
    [container], [of_island] = restore["containers"], pod["containers"]
    assert all(container[key] == of_island[key] for key in ("image", "securityContext"))
    [claim] = [each["persistentVolumeClaim"]["claimName"] for each in restore["volumes"] if each["name"] == "data"]
    assert (
        claim
        == f"{state['volumeClaimTemplates'][0]['metadata']['name']}-{_manifest('StatefulSet')['metadata']['name']}-0"
    )


def _restoring() -> dict[str, str]:
    """The scripts that restore a home folder in the volume: of the container's page, and of Kubernetes."""
    page = (CONTAINER / "README.md").read_text("utf-8")
    [of_container] = re.findall(r"--entrypoint sh island -euc '(.*?)'", page, re.DOTALL)
    pod = yaml.safe_load((DEPLOY / "kubernetes" / "restore.yaml").read_text("utf-8"))
    [of_pod] = pod["spec"]["containers"][0]["args"]
    return {"container": of_container, "pod": of_pod}


@pytest.mark.e2e
def test_a_backup_is_restored_in_the_volume(tmp_path: Path) -> None:
    home, saved = tmp_path / "island", tmp_path / "before.tar.gz"
    environment = _environment(home, {})
    _run(["island", "init", str(home), "--name", "kiso"], environment)
    _database(home)
    key = (home / "key").read_bytes()
    _run(["island", "backup", str(saved)], environment)
    for script in _restoring().values():
        (home / "key").unlink()
        _run(["sh", "-euc", script.replace("/data/", f"{tmp_path}/")], environment)
        assert (home / "key").read_bytes() == key and not (tmp_path / "island.old" / "key").exists()
        shutil.rmtree(tmp_path / "island.old")
    whole = saved.read_bytes()
    saved.write_bytes(whole[: len(whole) // 2])
    for script in _restoring().values():
        failed = subprocess.run(
            ["sh", "-euc", script.replace("/data/", f"{tmp_path}/")],
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert failed.returncode != 0 and (home / "key").read_bytes() == key
        assert not (tmp_path / "island.old").exists()


@pytest.mark.e2e
def test_no_new_island_is_made_beside_one_that_is_to_be_restored(tmp_path: Path) -> None:
    home = tmp_path / "island"
    (tmp_path / "island.old").mkdir()
    [pod] = [each["spec"]["template"]["spec"] for each in MANIFESTS if each["kind"] == "StatefulSet"]
    [of_pod] = pod["initContainers"][0]["args"]
    for command in (["sh", "-euc", of_pod.replace("/data/", f"{tmp_path}/")], ["sh", str(CONTAINER / "entrypoint")]):
        done = subprocess.run(
            command, env=_environment(home, {"ISLAND_NAME": "kiso"}), capture_output=True, timeout=60, check=False
        )
        assert done.returncode != 0 and b"island.old exists" in done.stderr
        assert not home.exists()


def _database(home: Path) -> None:
    """What a first start makes, and a backup needs."""
    for kind in ("state", "gossip"):
        Database.open(home, kind).close()


def test_the_manifests_refer_to_each_other() -> None:
    state = _manifest("StatefulSet")["spec"]
    assert state["replicas"] == 1
    labels, pod = state["template"]["metadata"]["labels"], state["template"]["spec"]
    selectors = [
        state["selector"]["matchLabels"],
        _manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(each["spec"]["selector"] for each in MANIFESTS if each["kind"] == "Service"),
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert _manifest("Service", state["serviceName"])["spec"]["clusterIP"] == "None"
    assert _manifest("ServiceAccount", pod["serviceAccountName"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claims = {claim["metadata"]["name"] for claim in state["volumeClaimTemplates"]}
    assert _manifest("ConfigMap", volumes["config"]["configMap"]["name"])
    for container in (*pod["initContainers"], *pod["containers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= {*volumes, *claims}
    [container] = pod["containers"]
    # A failed readiness takes the pod out of its service. The others restart it, which does not mend a full disk.
    for probe, path in (("startupProbe", "/healthz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        program, asked = container[probe]["exec"]["command"]
        assert (CONTAINER / program).is_file() and asked == path
    listening = config.parse(tomllib.loads(_manifest("ConfigMap")["data"]["island.toml"]), "ConfigMap").listen.peer
    livy = config.parse(tomllib.loads(_manifest("ConfigMap")["data"]["island.toml"]), "ConfigMap").livy.url
    _, namespace, *_ = livy.partition("://")[2].split(".")
    assert {
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}],
        "ports": [{"port": int(livy.rpartition(":")[2]), "protocol": "TCP"}],
    } in _manifest("NetworkPolicy")["spec"]["egress"]
    anywhere = [
        each["ipBlock"]
        for rule in _manifest("NetworkPolicy")["spec"]["egress"]
        for each in rule.get("to", [])
        if each.get("ipBlock", {}).get("cidr") == "0.0.0.0/0"
    ]
    assert anywhere == [{"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}]
    assert listening == f"0.0.0.0:{container['ports'][0]['containerPort']}"


@pytest.mark.e2e
def test_the_pod_makes_its_home_once(tmp_path: Path) -> None:
    """Runs the script of the pod's first container, with folders instead of its volumes."""
    [container] = _manifest("StatefulSet")["spec"]["template"]["spec"]["initContainers"]
    (tmp_path / "data").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "credentials").mkdir()
    text = _manifest("ConfigMap")["data"]["island.toml"]
    (tmp_path / "config" / "island.toml").write_text(text, "utf-8")
    [script] = container["args"]
    for folder in ("data", "config"):
        script = script.replace(f"/{folder}/", f"{tmp_path}/{folder}/")
    [variable] = container["env"]
    environment = _environment(tmp_path / "unused", {variable["name"]: str(tmp_path / "credentials")})
    _run([*container["command"], script], environment)
    home = tmp_path / "data" / "island"
    key = (home / "key").read_bytes()
    assert (home / "island.toml").read_text("utf-8") == text
    (tmp_path / "config" / "island.toml").write_text(text.replace("json", "text"), "utf-8")
    _run([*container["command"], script], environment)
    assert (home / "key").read_bytes() == key and 'format = "text"' in (home / "island.toml").read_text("utf-8")
