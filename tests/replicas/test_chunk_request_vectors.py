"""Requests for chunks against `protocols/vectors/replicas-requests.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from island.errors import IslandError
from island.kernel import codec
from island.replicas.chunk_server import check_request
from island.replicas.messages import ChunkRequest

VECTORS = json.loads((Path(__file__).parents[2] / "protocols/vectors/replicas-requests.json").read_text("utf-8"))


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda vector: vector["what"])
def test_a_valid_request_means_what_it_says(vector: dict[str, Any]) -> None:
    request = codec.decode(bytes.fromhex(vector["bytes"]), ChunkRequest)
    check_request(request)
    assert json.loads(msgspec.json.encode(request)) == vector["request"]
    if "later" not in vector["what"]:
        assert codec.encode(request).hex() == vector["bytes"]


@pytest.mark.parametrize("vector", VECTORS["hostile"], ids=lambda vector: vector["what"])
def test_a_hostile_request_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(IslandError) as caught:
        check_request(codec.decode(bytes.fromhex(vector["bytes"]), ChunkRequest))
    assert caught.value.code == vector["error"]
