"""Text that others wrote, made safe for a terminal: what a terminal would obey is shown as an escape.

File names, and what other islands say, may hold escape sequences that move the cursor, change
the title or rewrite what was printed before, and characters that turn the direction of text.
"""

from __future__ import annotations

import re

# C0 and C1 with DEL; marks, embeddings, overrides and isolates of direction; separators of lines and paragraphs;
# lone surrogates, which stand for bytes of file names that are not UTF-8 and cannot be written as such.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_OBEYED_IN_LINES = re.compile(_OBEYED.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def escaped(text: str, *, lines: bool = False) -> str:
    """`text` with each control character as `\\u001b`, which is also right within a string of JSON.

    Line feeds and tabs stay with `lines`.
    """
    return (_OBEYED_IN_LINES if lines else _OBEYED).sub(lambda found: f"\\u{ord(found[0]):04x}", text)
