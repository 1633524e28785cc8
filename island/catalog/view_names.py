"""Names of datasets as temporary views in Spark."""

from __future__ import annotations

import re
from collections.abc import Sequence

from island.errors import BadInput


def plain_name(text: str) -> str:
    """A name as a view may have it: characters outside `[A-Za-z0-9_]` become `_`."""
    return re.sub(r"[^A-Za-z0-9_]", "_", text)


def view_name(owner: str, name: str) -> str:
    """The view that every dataset has: `OWNER__NAME`."""
    return f"{plain_name(owner)}__{plain_name(name)}"


def view_names(datasets: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """For each (owner, name) the names of its views: `OWNER__NAME`, and `NAME` where only one of them has it.

    Spark's names do not differ by case. Raises `BadInput` when two datasets would be one view.
    """
    whole = [view_name(owner, name) for owner, name in datasets]
    short = [plain_name(name) for _, name in datasets]
    folded = [text.lower() for text in whole]
    for index, text in enumerate(folded):
        if text in folded[:index]:
            first, second = ("/".join(datasets[i]) for i in (folded.index(text), index))
            raise BadInput(
                f"the inputs {first} and {second} would both be the view {whole[index]}", hint="Leave one of them out."
            )
    taken = [text.lower() for text in short]
    return [
        (long, name) if taken.count(name.lower()) == 1 and name.lower() not in folded else (long,)
        for long, name in zip(whole, short, strict=True)
    ]
