"""What a release promised in `protocols/vectors`: a digest of each case, without the words that describe it.

Run as a program with the tree of the release (`python -m tests.upgrade.released_vectors TREE VERSION`), it writes
`vectors-VERSION.json`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS = {"name", "meaning", "what"}
"""Keys whose text describes a case and may be changed."""


def digests(vectors: Path) -> dict[str, list[str]]:
    """The digests of all cases, by the name of the file."""
    return {
        path.name: sorted({hashlib.sha256(case.encode()).hexdigest()[:16] for case in _cases(path)})
        for path in sorted(vectors.glob("*.json"))
    }


def _cases(path: Path) -> Iterator[str]:
    document = json.loads(path.read_text("utf-8"))
    for key, value in document.items():
        for case in value if isinstance(value, list) else [value]:
            if key not in WORDS:
                plain = {k: v for k, v in case.items() if k not in WORDS} if isinstance(case, dict) else case
                yield json.dumps([key, plain], sort_keys=True)


def main(tree: Path, version: str) -> None:
    """Write the digests of a release."""
    text: dict[str, Any] = digests(tree / "protocols" / "vectors")
    Path(__file__).with_name(f"vectors-{version}.json").write_text(json.dumps(text, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
