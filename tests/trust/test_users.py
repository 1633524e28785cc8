"""Tokens and roles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from island.errors import ConfigError, Unauthenticated
from island.kernel.ports import SystemRng
from island.trust.users import Principal, Tokens, create_tokens, read_token


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
