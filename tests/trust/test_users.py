"""Tokens and roles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from island.errors import BadInput, ConfigError, Unauthenticated
from island.kernel.ports import SystemClock, SystemRng
from island.trust.users import (
    RESERVED_NAMES,
    Principal,
    Tokens,
    UserRow,
    check_user_name,
    create_tokens,
    new_token,
    read_token,
    token_hash,
)

DAY = 86400.0


class Clocks(SystemClock):
    """A wall clock and a clock since boot that a test sets."""

    now, since_boot = 1_000_000.0, 500.0

    def wall(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.since_boot

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.since_boot += seconds


def row(name: str, token: str, *, issued: float = 1_000_000.0, expires: float | None = None) -> UserRow:
    return UserRow(name, "user", token_hash(token), created=issued, issued=issued, expires=expires, revoked=None)


def accepted(tokens: Tokens, token: str) -> bool:
    try:
        tokens.principal(token)
    except Unauthenticated:
        return False
    return True


def test_two_tokens_two_roles(tmp_path: Path) -> None:
    create_tokens(tmp_path, SystemRng())
    tokens = Tokens.load(tmp_path)
    for name, role in (("token", "administrator"), ("token.user", "user")):
        path = tmp_path / name
        assert path.stat().st_mode & 0o777 == 0o600
        token = read_token(path)
        assert re.fullmatch(r"[A-Za-z0-9_-]+", token)
        principal = tokens.principal(token)
        assert (principal.role, principal.user) == (role, role)
        assert principal.is_administrator == (role == "administrator")
    assert read_token(tmp_path / "token") != read_token(tmp_path / "token.user")
    assert tokens.principal(read_token(tmp_path / "token.user")) == Principal("user", "user")


@pytest.mark.parametrize("token", ["", "x", "ä" * 20, "\ud800", "isl_a_" + "A" * 32, "A" * 1_000_000])
def test_unknown_tokens_are_refused(tmp_path: Path, token: str) -> None:
    create_tokens(tmp_path, SystemRng())
    with pytest.raises(Unauthenticated):
        Tokens.load(tmp_path).principal(token)


def test_exposed_missing_and_malformed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        Tokens.load(tmp_path)
    create_tokens(tmp_path, SystemRng())
    with pytest.raises(ConfigError, match="already exists"):
        create_tokens(tmp_path, SystemRng())
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Tokens.load(tmp_path)
    (tmp_path / "token").chmod(0o600)
    for content in (b"", b"short", b"two words of a token that is long", b"\xff" * 40):
        (tmp_path / "token").write_bytes(content)
        with pytest.raises(ConfigError, match="does not contain a token"):
            Tokens.load(tmp_path)


def test_the_shared_token_can_be_turned_off(tmp_path: Path) -> None:
    create_tokens(tmp_path, SystemRng())
    tokens = Tokens.load(tmp_path, shared=False)
    assert tokens.principal(read_token(tmp_path / "token")).is_administrator
    assert not accepted(tokens, read_token(tmp_path / "token.user"))
    (tmp_path / "token.user").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Tokens.load(tmp_path, shared=False)


def test_a_user_has_a_token_of_her_own_until_it_is_replaced() -> None:
    tokens = Tokens({"administrator": "root"})
    first, second, other = (new_token("user", SystemRng()) for _ in range(3))
    tokens.put_users([row("alice", first), row("bob", other)])
    assert tokens.principal(first) == Principal("user", "alice")
    assert tokens.principal(other) == Principal("user", "bob")
    tokens.put_users([row("alice", second)])
    assert tokens.principal(second).user == "alice" and not accepted(tokens, first)
    tokens.put_users([UserRow("alice", "user", None, created=0, issued=0, expires=None, revoked=1)])
    assert not accepted(tokens, second) and not accepted(tokens, "")
    assert tokens.principal(other).user == "bob" and tokens.principal("root").is_administrator


def test_every_refused_token_gets_the_same_words() -> None:
    clock, token, revoked = Clocks(), new_token("user", SystemRng()), new_token("user", SystemRng())
    tokens = Tokens({}, clock)
    tokens.put_users([row("alice", token, expires=clock.now + DAY), row("eve", revoked)])
    tokens.put_users([UserRow("eve", "user", None, created=0, issued=0, expires=None, revoked=1)])
    clock.pass_time(2 * DAY)
    said = set()
    for refused in (token, revoked, "isl_u_" + "A" * 32, token[:-1] + "~", "alice"):
        with pytest.raises(Unauthenticated) as error:
            tokens.principal(refused)
        said.add((error.value.message, error.value.hint, error.value.code))
    assert len(said) == 1 and "alice" not in str(said)


def test_a_token_expires_by_the_clock() -> None:
    clock, token = Clocks(), new_token("user", SystemRng())
    tokens = Tokens({}, clock)
    tokens.put_users([row("alice", token, expires=clock.now + DAY)])
    assert accepted(tokens, token)
    clock.pass_time(DAY - 1)
    assert accepted(tokens, token)
    clock.pass_time(1)
    assert not accepted(tokens, token)


def test_a_clock_that_is_set_back_does_not_prolong_a_token() -> None:
    clock, token = Clocks(), new_token("user", SystemRng())
    tokens = Tokens({}, clock)
    tokens.put_users([row("alice", token, expires=clock.now + DAY)])
    assert accepted(tokens, token)
    clock.pass_time(DAY / 2)
    clock.now -= DAY / 2
    assert accepted(tokens, token)
    clock.pass_time(DAY / 2)
    assert clock.now < 1_000_000 + DAY and not accepted(tokens, token)


def test_a_clock_that_is_ahead_for_a_while_does_not_end_a_token() -> None:
    clock, token = Clocks(), new_token("user", SystemRng())
    tokens = Tokens({}, clock)
    tokens.put_users([row("alice", token, expires=clock.now + DAY)])
    clock.now += 365 * DAY
    assert not accepted(tokens, token)
    clock.now -= 365 * DAY
    assert accepted(tokens, token)


def test_a_machine_that_lost_its_time_does_not_accept_tokens_that_expire() -> None:
    clock, token, endless = Clocks(), new_token("user", SystemRng()), new_token("user", SystemRng())
    tokens = Tokens({}, clock)
    tokens.put_users([row("alice", token, expires=clock.now + DAY), row("bob", endless)])
    clock.now = 0.0
    assert not accepted(tokens, token) and accepted(tokens, endless)
    clock.now = 1_000_000.0 - 60  # the clock of another machine may be a little late
    assert accepted(tokens, token)


@pytest.mark.parametrize("name", ["alice", "a", "0.x_y-z", "a" * 64])
def test_names_of_users(name: str) -> None:
    assert check_user_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "Alice", "a" * 65, "a b", "a:b", "a@b", "-a", ".a", "é", "a\n", *sorted(RESERVED_NAMES)]
)
def test_names_that_no_user_can_have(name: str) -> None:
    with pytest.raises(BadInput):
        check_user_name(name)
