"""The recipes for sites: their configurations are valid, and nginx serves the user port as described."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from island.cli.demo.demo_island import free_ports, wait_for
from tests.conftest import REPOSITORY
from tests.missing import missing
from tests.servers.daemon import ServedIsland, island_command, running

DEPLOY = REPOSITORY / "deploy"
SITES = DEPLOY / "sites"
RECIPES = sorted(folder.name for folder in SITES.iterdir() if folder.is_dir())
HOST = "island.example.org"


def _need(tool: str, package: str) -> str:
    """The path of a program; without it the test fails in CI and is skipped elsewhere."""
    found = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        reason = f"{tool} is absent: install {package} to run this test"
        missing(reason)
    return found


def test_there_is_a_recipe_for_each_kind_of_site() -> None:
    assert RECIPES == ["laptop", "livy-on-yarn", "reverse-proxy", "spark-standalone"]
    for name in RECIPES:
        assert "Not run:" in (SITES / name / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", RECIPES)
def test_the_configuration_has_no_problems(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    assert island_command("init", str(home), "--name", name).returncode == 0
    own = SITES / name / "island.toml"
    text = (own if own.exists() else REPOSITORY / "config" / f"{name}.toml").read_text("utf-8")
    if "/run/credentials/island.service" in text:  # as in the unit
        credentials = tmp_path / "credentials"
        credentials.mkdir()
        (credentials / "livy-password").write_text("secret")
        (credentials / "livy-password").chmod(0o440)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
        text = text.replace("/run/credentials/island.service", str(credentials))
    with tempfile.TemporaryDirectory(dir="/var/tmp") as shared:  # in a folder that Livy's account can enter
        os.chmod(shared, 0o2750)
        (home / "island.toml").write_text(text.replace("/srv/island", shared), "utf-8")
        checked = island_command("--home", str(home), "config", "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_unit_of_a_laptop_has_no_mistakes(tmp_path: Path) -> None:
    analyze = _need("systemd-analyze", "systemd")
    program = tmp_path / "island"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "island.service"
    unit.write_text(
        (SITES / "laptop" / "island.service")
        .read_text("utf-8")
        .replace("%h/.local/share/island/bin/island", str(program)),
        "utf-8",
    )
    done = subprocess.run(
        [analyze, "--user", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "PATH": os.environ["PATH"]},
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


class Nginx:
    """nginx with the configuration of the recipe, on free ports and with a certificate made for the test."""

    def __init__(self, folder: Path, user_port: str) -> None:
        self.program = _need("nginx", "nginx")
        openssl = _need("openssl", "openssl")
        self.tls, plain = free_ports(2)
        self.folder = folder
        key, certificate = folder / "privkey.pem", folder / "fullchain.pem"
        subprocess.run(
            [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={HOST}",
             "-addext", f"subjectAltName=DNS:{HOST},IP:127.0.0.1", "-keyout", key, "-out", certificate],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        self.certificate = certificate
        recipe = (SITES / "reverse-proxy" / "nginx.conf").read_text("utf-8")
        recipe = re.sub(r"^ *listen \[::\].*\n", "", recipe, flags=re.MULTILINE)  # a machine may have no IPv6
        for old, new in (
            ("listen 443", f"listen 127.0.0.1:{self.tls}"),
            ("listen 80;", f"listen 127.0.0.1:{plain};"),
            ("127.0.0.1:8990", user_port),
            ("/etc/ssl/island", str(folder)),
        ):
            assert old in recipe
            recipe = recipe.replace(old, new)
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        self.configuration = folder / "nginx.conf"
        self.configuration.write_text(
            f"pid {folder}/pid;\nerror_log {folder}/error.log;\ndaemon off;\nmaster_process off;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{recipe}\n}}\n",
            "utf-8",
        )

    def command(self, *arguments: str) -> list[str]:
        return [
            self.program,
            "-p",
            str(self.folder),
            "-e",
            f"{self.folder}/error.log",
            "-c",
            str(self.configuration),
            *arguments,
        ]


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[tuple[ServedIsland, Nginx]]:
    """An island with the recipe's `allowed_hosts`, behind a running nginx."""
    place = ServedIsland(tmp_path, "observatory")
    place.configure("allowed_hosts", f'["{HOST}"]')
    folder = tmp_path / "nginx"
    folder.mkdir()
    nginx = Nginx(folder, place.url.removeprefix("http://"))
    tested = subprocess.run(nginx.command("-t"), capture_output=True, text=True, timeout=60, check=False)
    assert tested.returncode == 0, tested.stderr
    with running(place):
        process = subprocess.Popen(nginx.command())
        try:
            wait_for("nginx", lambda: True if (folder / "pid").exists() and (folder / "pid").read_text() else None)
            yield place, nginx
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.e2e
def test_nginx_serves_the_user_port(proxied: tuple[ServedIsland, Nginx]) -> None:
    place, nginx = proxied
    context = ssl.create_default_context(cafile=nginx.certificate)

    def status(path: str, host: str, token: str, source: str = "127.0.0.1") -> int:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", nginx.tls, timeout=30, context=context, source_address=(source, 0)
        )
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Host": host, "Authorization": f"Bearer {token}"})
            return connection.getresponse().status

    assert status("/api/v1/island", HOST, place.user_token) == 200
    assert status("/sessions", HOST, place.user_token) == 200
    assert status("/api/v1/island", HOST, "wrong") == 401
    assert status("/api/v1/island", "another.example.org", place.user_token) == 403
    assert status("/readyz", HOST, "") == 200  # this machine may ask
    for path in ("/readyz", "/healthz", "/metrics"):
        assert status(path, HOST, place.user_token, source="127.0.0.2") == 403, path  # another address may not
    assert status("/sessions", HOST, place.user_token, source="127.0.0.2") == 200
