"""Time to find the user of a token, compared with the bare hash of the token in the same run.

    python -m tests.bench.bench_users [--users 10000] [--rounds 7]

Every request at the user port pays this. Times are the minimum of all rounds, in microseconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from island.errors import Unauthenticated
from island.kernel.ports import SystemRng
from island.trust.users import Tokens, UserRow, new_token, token_hash

REPEATED = 20_000


def least(rounds: int, call: Callable[[], object]) -> float:
    """Microseconds of one call in the fastest round."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(REPEATED):
            call()
        found.append((time.perf_counter() - start) / REPEATED * 1e6)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    given = [new_token("user", SystemRng()) for _ in range(options.users)]
    tokens = Tokens({"administrator": new_token("administrator", SystemRng())})
    tokens.put_users(UserRow(f"u{n}", "user", token_hash(token), 0, 0, 4e9, None) for n, token in enumerate(given))
    unknown, known = new_token("user", SystemRng()), given[len(given) // 2]

    def refused() -> None:
        try:
            tokens.principal(unknown)
        except Unauthenticated:
            return

    reference = least(options.rounds, lambda: token_hash(known))
    for what, call in (("a user's token", lambda: tokens.principal(known)), ("an unknown token", refused)):
        found = least(options.rounds, call)
        print(f"{what:<18} {found:6.2f} us, {found / reference:.1f} x the hash of a token ({reference:.2f} us)")


if __name__ == "__main__":
    main()
