"""Time and memory to decode honest messages and the worst ones of each type, compared with msgpack in the same run.

    python -m tests.bench.bench_codec [--size 16384] [--rounds 7]

The reference unpacks a message to plain values with msgpack, under limits derived from its size,
and then converts them to the type. Times are the minimum of all rounds. Memory is the peak that
Python allocated. A ratio of 0.1 means that the codec needs a tenth of what the reference needs.
Hostile bytes are decoded as a `Hello`, which anybody may send.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack
import msgspec

from island.gossip import core
from island.gossip.core import Head
from island.gossip.messages import BatchBody, Delta, DeltaPage, HeadAt, Heads, SignedBatch
from island.kernel import codec
from island.kernel.codec import Malformed, Message
from island.kernel.ids import IslandId, key_bytes
from island.net.frames import Hello
from tests.standins.hostile_messages import attacks, densest, message_types, peak

ME = IslandId("ab" * 32)
T = TypeVar("T", bound=Message)


def by_msgpack(data: bytes, kind: type[T]) -> T:
    """`data` decoded as a `kind` with msgpack, through plain values."""
    size = len(data)
    try:
        plain = msgpack.unpackb(
            data, strict_map_key=False, max_str_len=size, max_bin_len=size, max_array_len=size, max_map_len=size
        )
        return msgspec.convert(plain, kind, strict=True, builtin_types=(bytes,))
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(str(error)) from error


def by_codec(data: bytes, kind: type[T]) -> T:
    """`data` of any size decoded as a `kind` with the codec."""
    return codec.decode(data, kind, limit=len(data))


def least(rounds: int, decode: Callable[[], Any]) -> float:
    """Seconds of the fastest round."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        try:
            decode()
        except Malformed:
            pass
        found.append(time.perf_counter() - start)
    return min(found)


def row(name: str, data: bytes, kind: type[Message], rounds: int) -> None:
    """Print the comparison for these bytes."""
    ours, theirs = (lambda: by_codec(data, kind)), (lambda: by_msgpack(data, kind))
    times = least(rounds, ours), least(rounds, theirs)
    sizes = peak(ours), peak(theirs)
    print(
        f"{name:<52} {len(data):>8,} B  {times[0] * 1e3:>8.3f} ms  x{times[0] / times[1]:<6.2f}"
        f" {sizes[0]:>11,} B  x{sizes[0] / max(sizes[1], 1):.3f}"
    )


def batches(count: int, entries: int) -> list[bytes]:
    """Signed log batches with records of a realistic size: about 240 bytes."""
    changes = [(f"dataset/survey-{n:05d}", os.urandom(240)) for n in range(count * entries)]
    head, found = Head(), []
    for number in range(count):
        for body in core.cut_batches(ME, head, changes[number * entries : (number + 1) * entries]):
            found.append(codec.encode(SignedBatch(body=body, signature=bytes(64))))
            head = head.after(core.open_batch(found[-1]))
    return found


def honest() -> list[tuple[str, bytes, type[Message]]]:
    """Typical messages between islands."""
    one, many = batches(1, 1), batches(4, 50)
    deltas = tuple(Delta(origin=key_bytes(ME), chain=bytes(700), batches=(each,)) for each in many)
    heads = tuple(HeadAt(epoch=1, seq=n + 1000, head=os.urandom(8)) for n in range(800))
    inner = codec.decode(many[0], SignedBatch).body
    return [
        (
            "a push of one change",
            codec.encode(DeltaPage(deltas=(Delta(origin=key_bytes(ME), batches=(one[0],)),))),
            DeltaPage,
        ),
        ("a page of 4 deltas", codec.encode(DeltaPage(deltas=deltas)), DeltaPage),
        ("a batch of 50 records", inner, BatchBody),
        ("a page of 800 heads", codec.encode(Heads(roster=bytes(32), root=bytes(32), indexed=heads)), Heads),
        ("the same from a later version", msgpack.packb({**_plain(inner), "later": 1}), BatchBody),
    ]  # fmt: skip


def _plain(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgpack.unpackb(data)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=16 * 1024, help="bytes of a hostile message")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(f"{'':<52} {'message':>10}  {'time':>11}  {'ratio':<7} {'memory':>13}  ratio")
    print("honest")
    for name, data, kind in honest():
        row(name, data, kind, options.rounds * 10)
    for place in ("instead of the message", "beside a valid message"):
        print(f"hostile, {place}, where a Hello is expected")
        for name, data in attacks(Hello, options.size):
            if name.endswith(place):
                row(name.removesuffix(f", {place}"), data, Hello, options.rounds)
    print("valid, with the maximum number of small values (the ten with the highest ratio of memory to size)")
    crowded = [(data, kind, field) for kind in message_types() for field, data in densest(kind)]
    crowded.sort(key=lambda each: -peak(lambda: by_codec(each[0], each[1])) / (len(each[0]) + 1024))
    for data, kind, field in crowded[:10]:
        row(f"{kind.__name__}.{field}", data, kind, options.rounds)


if __name__ == "__main__":
    main()
