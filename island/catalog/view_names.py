"""Names of the temporary Spark views of datasets."""

from __future__ import annotations

import re
from collections.abc import Sequence

from island.errors import BadInput


def plain_name(text: str) -> str:
    """Convert a name to a valid name of a view: characters outside `[A-Za-z0-9_]` become `_`."""
    return re.sub(r"[^A-Za-z0-9_]", "_", text)


def view_name(owner: str, name: str) -> str:
    """The unique name of a dataset's view: `OWNER__NAME`."""
    return f"{plain_name(owner)}__{plain_name(name)}"


def view_names(datasets: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """For each (owner, name), return its views: `OWNER__NAME`, and `NAME` if no other dataset in the list has it.

    Spark's names are case-insensitive. Raises `BadInput` if two datasets would have the same view.
    """
    whole = [view_name(owner, name) for owner, name in datasets]
    short = [plain_name(name) for _, name in datasets]
    folded = [text.lower() for text in whole]
    for index, text in enumerate(folded):
        if text in folded[:index]:
            first, second = ("/".join(datasets[i]) for i in (folded.index(text), index))
            raise BadInput(
                f"the inputs {first} and {second} would both have the view {whole[index]}",
                hint="Use only one of them in a session.",
            )
    taken = [text.lower() for text in short]
    return [
        (long, name) if taken.count(name.lower()) == 1 and name.lower() not in folded else (long,)
        for long, name in zip(whole, short, strict=True)
    ]
