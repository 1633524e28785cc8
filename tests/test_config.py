"""The configuration file: complete by construction, strict, and clear when it is wrong."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from island import config
from island.errors import ConfigError

ENGINE = {"name": "cluster", "url": "http://a.example:8998"}


def minimal(**sections: Any) -> dict[str, Any]:
    return {"island": {"name": "kiso"}, **sections}


def test_what_init_writes_is_complete_and_loads(tmp_path: Path) -> None:
    path = tmp_path / "island.toml"
    path.write_text(config.render({"island": {"name": "kiso"}}))
    raw = tomllib.loads(path.read_text())
    assert {(s, k) for s in raw for k in raw[s]} == {(s, k) for s, k, *_ in config.describe()}
    loaded = config.load(path)
    assert loaded == config.parse(minimal(), "x")
    assert loaded.jobs.accept_from == [] and loaded.jobs.foreign_code == "none" and loaded.jobs.same_user is False


def test_tables_are_written_as_toml() -> None:
    values = {"accounts": {"alice": "aliceunix", "virgo:bob": 'b"o'}, "max_live_of": {"alice": 200}}
    text = config.render({"island": {"name": "kiso"}, "jobs": values})
    assert {key: tomllib.loads(text)["jobs"][key] for key in values} == values
    jobs = config.parse(minimal(jobs={"max_live_of": {"alice": 200}, "max_live_per_user": 7}), "x").jobs
    assert (jobs.live_limit("alice"), jobs.live_limit("bob")) == (200, 7)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (minimal(jobs={"accept_frm": []}), ["jobs.accept_frm", "'accept_from'"]),
        (minimal(jbos={}), ["'jbos'", "'jobs'"]),
        (minimal(jobs={"same_user": "yes"}), ["jobs.same_user", "bool"]),
        (minimal(jobs={"foreign_code": "some"}), ["jobs.foreign_code"]),
        (minimal(jobs=3), ["'jobs' must be a table"]),
        (minimal(livy={"max_sessions": 0}), ["livy.max_sessions"]),
        (minimal(listen={"user": "0.0.0.0:8990"}), ["listen.user", "loopback"]),
        (minimal(listen={"user": "127.0.0.1"}), ["listen.user", "HOST:PORT"]),
        (minimal(listen={"peer": "127.0.0.1:99999"}), ["listen.peer"]),
        (minimal(listen={"allowed_hosts": ["https://a.example"]}), ["listen.allowed_hosts", "HOST:PORT"]),
        (minimal(listen={"allowed_hosts": ["a.example", "*.b.example"]}), ["listen.allowed_hosts", "*.b.example"]),
        (minimal(listen={"allowed_hosts": "a.example"}), ["listen.allowed_hosts", "array"]),
        (minimal(listen={"advertise": ["a.example:1", 5]}), ["listen.advertise[1]", "`str`"]),
        (minimal(livy={"url": "livy.example.org:8998"}), ["livy.url", "http://"]),
        (minimal(livy={"url": "http://livy.example.org:no"}), ["livy.url", "http://"]),
        (minimal(livy={"url": "http://me@livy.example.org"}), ["livy.url", "livy.user"]),
        (minimal(livy={"url": "http://livy.example.org/ x"}), ["livy.url", "http://"]),
        (minimal(livy={"url": 'http://livy."example.org'}), ["livy.url", "http://"]),
        (minimal(replicas={"quota": "lots"}), ['replicas.quota = "lots" is not a size', "for example 20GiB"]),
        (minimal(livy={"driver_memory": "1GiB"}), ['livy.driver_memory = "1GiB" is not', "for example 1g"]),
        (
            minimal(jobs={"accept_from": ["virgo", "members:alice"]}),
            ["jobs.accept_from", "members:alice", "ISLAND:USER"],
        ),
        (minimal(jobs={"accept_from": ["virgo:"]}), ["jobs.accept_from", "'virgo:'"]),
        (minimal(jobs={"accounts": {"virgo:": "guest"}}), ["jobs.accounts", "'virgo:'", "ISLAND:USER"]),
        (minimal(jobs={"accounts": {"alice": "a b"}}), ["jobs.accounts", "regex"]),
        (minimal(jobs={"accounts": ["alice"]}), ["jobs.accounts", "object"]),
        (minimal(jobs={"max_live_of": {"alice": 0}}), ["jobs.max_live_of"]),
        (minimal(users={"shared_token": "no"}), ["users.shared_token", "bool"]),
        (minimal(engine={"name": "a", "url": "http://a:1"}), ["'engine' must be a list of tables", "[[engine]]"]),
        (minimal(engine=[{"name": "a"}]), ["engine[0] has no url", "under [[engine]]"]),
        (minimal(engine=[{"name": "a", "url": ""}]), ["engine[0].url", "http://"]),
        (minimal(engine=[ENGINE, {**ENGINE}]), ["engine[1].name", "another engine"]),
        (minimal(engine=[{**ENGINE, "name": "livy"}]), ["engine[0].name", "another engine"]),
        (minimal(engine=[{**ENGINE, "kinds": ["cobol"]}]), ["engine[0].kinds", "cobol"]),
        (minimal(engine=[{**ENGINE, "shared_folder": "here"}]), ["engine[0].shared_folder", "absolute"]),
        (minimal(engine=[{**ENGINE, "max_session": 1}]), ["engine[0].max_session", "'max_sessions'"]),
        ({"island": {"name": "a/b"}}, ["island.name"]),
        ({"island": {}}, ["has no name"]),
        ({}, ["has no name"]),
    ],
)
def test_what_is_wrong_is_named(raw: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        config.parse(raw, "/home/island.toml")
    assert "/home/island.toml" in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_an_island_has_any_number_of_engines() -> None:
    parsed = config.parse(minimal(engine=[ENGINE, {**ENGINE, "name": "other", "kinds": ["sql"]}]), "x")
    assert [(each.name, each.max_sessions, each.kinds) for each in parsed.engine] == [
        ("cluster", 4, []),
        ("other", 4, ["sql"]),
    ]


def test_all_problems_are_found_at_once() -> None:
    raw = {
        "jbos": {},
        "listen": {"user": "0.0.0.0:8990", "peer": 5, "adress": "x"},
        "livy": {"url": "ftp://x"},
        "jobs": 3,
    }
    found = config.problems(raw)
    assert [(each.section, each.key) for each in found] == [
        ("jbos", ""),
        ("island", "name"),
        ("listen", "adress"),
        ("listen", "user"),
        ("listen", "peer"),
        ("livy", "url"),
        ("jobs", ""),
    ]
    assert all(each.message and each.hint for each in found)
    assert config.problems(minimal()) == []


@pytest.mark.parametrize("secret", ["pa55", "pa/55", "pa@55", "pa?55", "pa 55", 'pa"55'])
def test_a_password_in_a_url_is_not_repeated(secret: str) -> None:
    assert config.without_password(f'url = "http://me:{secret}@host:1/x"') == 'url = "http://***@host:1/x"'
    for raw in (f"ftp://me:{secret}@host", f"http://me:{secret}@host:no", f"me:{secret}@host"):
        assert secret not in str(config.problems(minimal(livy={"url": raw})))


def test_a_missing_or_broken_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="island init"):
        config.load(tmp_path / "island.toml")
    (tmp_path / "island.toml").write_text("[island\n")
    with pytest.raises(ConfigError, match=r"island\.toml"):
        config.load(tmp_path / "island.toml")
    (tmp_path / "island.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError):
        config.load(tmp_path / "island.toml")


def test_a_file_with_many_problems_names_the_command_that_lists_them(tmp_path: Path) -> None:
    (tmp_path / "island.toml").write_text("[jbos]\n[island]\nname = 3\n")
    with pytest.raises(ConfigError) as error:
        config.load(tmp_path / "island.toml")
    assert "'jbos'" in error.value.message
    assert error.value.hint.endswith("`island config check` lists all 2 problems.")
    (tmp_path / "island.toml").write_text("[island]\nname = 3\n")
    with pytest.raises(ConfigError) as error:
        config.load(tmp_path / "island.toml")
    assert "config check" not in error.value.hint


def test_sizes() -> None:
    assert config.size_in_bytes("20GiB") == 20 * 2**30
    assert config.size_in_bytes("4096") == 4096


def test_ipv6_addresses() -> None:
    assert config.split_address("[::1]:8990") == ("::1", 8990)
    assert config.is_loopback("::1") and config.is_loopback("localhost") and not config.is_loopback("0.0.0.0")


def test_the_reference_is_made_from_the_types() -> None:
    page = Path(__file__).parent.parent / "docs" / "configuration.md"
    assert page.read_text("utf-8") == config.reference(), (
        "docs/configuration.md is out of date: write config.reference() into it"
    )
    assert all(text for *_, text in config.describe())


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "config").glob("*.toml")), ids=lambda p: p.name)
def test_every_example_loads(path: Path) -> None:
    assert config.load(path).island.name


def test_a_laptop_looks_for_islands_on_its_network_and_an_observatory_does_not() -> None:
    folder = Path(__file__).parent.parent / "config"
    laptop, observatory = config.load(folder / "laptop.toml"), config.load(folder / "observatory.toml")
    assert laptop.discovery.enabled and laptop.listen.peer == ""
    assert not observatory.discovery.enabled and not config.parse(minimal(), "x").discovery.enabled


def test_a_newline_at_the_end_is_no_part_of_a_name() -> None:
    with pytest.raises(ConfigError, match=r"island\.name"):
        config.parse({"island": {"name": "kiso\n"}}, "x")
