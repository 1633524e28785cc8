"""Two people with tokens of their own at one daemon, by unmodified clients and by commands."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import pytest

from island.client import Api
from island.errors import IslandError
from island.home import Endpoint
from tests.islands.user_port import livy_in_thread
from tests.servers.daemon import ServedIsland, island_command, running

pytestmark = pytest.mark.e2e


def test_two_users_see_and_end_their_own_sessions(tmp_path_factory: pytest.TempPathFactory) -> None:
    bodies: list[dict[str, Any]] = []
    place = ServedIsland(tmp_path_factory.mktemp("users"), "kiso", dialled=False)
    with livy_in_thread(bodies) as livy:
        place.configure("url", json.dumps(livy))
        place.configure("accounts", '{alice = "aliceunix"}')
        with running(place):
            tokens = {name: place.command("user", "add", name).strip() for name in ("alice", "bob")}
            _by_pylivy(place, tokens)
            assert sorted(str(body.get("proxyUser")) for body in bodies) == ["None", "aliceunix"]
            _by_commands(place, tokens)
            place.command("user", "revoke", "bob")
            with pytest.raises(IslandError, match="does not know the token"):
                Api(Endpoint(place.url, tokens["bob"])).get("/sessions")
        with running(place):  # what was revoked stays revoked, and the other token is still valid
            with pytest.raises(IslandError, match="does not know the token"):
                Api(Endpoint(place.url, tokens["bob"])).get("/sessions")
            assert Api(Endpoint(place.url, tokens["alice"])).get("/api/v1/user")["name"] == "alice"


def _by_pylivy(place: ServedIsland, tokens: dict[str, str]) -> None:
    """Both have a session with the same name at the same time; neither finds the other's."""
    from livy import LivySession, SessionKind
    from livy.client import LivyClient

    with ExitStack() as stack:
        clients, opened = {}, {}
        for name, token in tokens.items():
            clients[name] = LivyClient(place.url, auth=("anybody", token))
            stack.callback(clients[name].close)
            opened[name] = stack.enter_context(
                LivySession.create(
                    place.url, auth=(name, token), kind=SessionKind.PYSPARK, proxy_user="root", name="mine", echo=False
                )
            )
        for name, other in (("alice", "bob"), ("bob", "alice")):
            mine, theirs = opened[name].session_id, opened[other].session_id
            assert [session.session_id for session in clients[name].list_sessions()] == [mine]
            assert opened[name].run("1+1").text == "2"
            assert clients[name].get_session(theirs) is None
            with pytest.raises(OSError, match="404"):
                clients[name].list_statements(theirs)
            with pytest.raises(OSError, match="404"):
                clients[name].delete_session(theirs)
            assert place.run("job", "cancel", str(theirs), token=tokens[name]).returncode == 1
        assert [session.run("still").text for session in opened.values()] == ["ran still", "ran still"]


def _by_commands(place: ServedIsland, tokens: dict[str, str]) -> None:
    """The administrator sees all jobs, and a user hers: from anywhere, with the URL and the token."""
    assert {row["owner"] for row in place.json("job", "ls")} == {"alice@kiso", "bob@kiso"}
    environment = {"ISLAND_TOKEN": tokens["bob"]}
    mine = island_command("job", "ls", "--json", "--url", place.url, environment=environment)
    assert [row["owner"] for row in json.loads(mine.stdout)] == ["bob@kiso"]
    asked = island_command("user", "show", "--json", "--url", place.url, environment=environment)
    assert json.loads(asked.stdout)["name"] == "bob"
