"""Invitations: the word, and what becomes of it."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.errors import BadInput
from island.kernel import codec
from island.kernel.ids import key_bytes
from island.kernel.ports import SeededRng
from island.trust import core
from island.trust.core import IssuedInvitation
from island.trust.keys import Identity
from island.trust.messages import Invitation

INVITER = Identity.generate(SeededRng("inviter"))
INVITATION = Invitation(
    genesis=core.found_network("test", bytes(32), INVITER.id, bytes(32)),
    inviter=key_bytes(INVITER.id),
    name="lapalma",
    addresses=("127.0.0.1:8991", "[::1]:8991"),
    secret=b"s" * 16,
    expires=1_800_000_000,
)
WORD = core.format_invitation(INVITATION)


def code_of(text: str) -> str:
    with pytest.raises(BadInput) as caught:
        core.parse_invitation(text)
    assert "new invitation" in caught.value.hint
    return caught.value.code


def test_it_is_one_word_and_says_all() -> None:
    assert WORD.startswith("island1-")
    assert not set(WORD) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
    assert core.parse_invitation(WORD) == INVITATION


def test_line_breaks_and_spaces_of_a_mail_do_not_matter() -> None:
    assert core.parse_invitation(f"  {WORD[:70]}\r\n {WORD[70:]}\n") == INVITATION


@given(position=st.integers(len("island1-"), len(WORD) - 1), letter=st.sampled_from("ABCxyz019_-"))
def test_any_other_letter_is_noticed(position: int, letter: str) -> None:
    if WORD[position] != letter:
        assert code_of(WORD[:position] + letter + WORD[position + 1 :]) in {
            "invitation_altered",
            "invitation_malformed",
        }


@given(st.integers(0, len(WORD) - 1))
def test_a_cut_one_is_noticed(length: int) -> None:
    assert code_of(WORD[:length]) in {"invitation_altered", "invitation_malformed"}


@pytest.mark.parametrize("text", ["", "island1-", "island2-AAAA", "hello", "island1-ä", "island1-" + "A" * 100_000])
def test_what_is_no_invitation_is_said_to_be_none(text: str) -> None:
    assert code_of(text) in {"invitation_altered", "invitation_malformed"}


@pytest.mark.parametrize(
    "content", [{}, {"genesis": b""}, [1, 2], {"genesis": b"\x80", "inviter": bytes(32), "name": "../x"}]
)
def test_a_good_checksum_over_nonsense_is_malformed(content: object) -> None:
    body = codec.encode(content)
    word = core.PREFIX + base64.urlsafe_b64encode(body + core._checksum(body)).rstrip(b"=").decode()
    assert code_of(word) == "invitation_malformed"


def test_judgement() -> None:
    fresh = IssuedInvitation(expires=100, uses=2, used=1)
    assert core.judge_redemption(fresh, False, 99) == "admit"
    assert core.judge_redemption(fresh, True, 200) == "again"
    for issued, now, code in (
        (None, 0, "invitation_unknown"),
        (fresh, 100, "invitation_expired"),
        (IssuedInvitation(expires=100, uses=1, used=1), 0, "invitation_used_up"),
    ):
        with pytest.raises(BadInput) as caught:
            core.judge_redemption(issued, False, now)
        assert caught.value.code == code and "new invitation" in caught.value.hint
