"""Escapes control characters in untrusted text, to make it safe for a terminal.

File names and texts from other islands may contain escape sequences that move the cursor, change
the title or overwrite earlier output, and characters that change the direction of text.
"""

from __future__ import annotations

import re

# C0, DEL and C1; marks, embeddings, overrides and isolates of direction; line and paragraph separators;
# lone surrogates, which represent bytes of file names that are not UTF-8 and cannot be encoded.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_OBEYED_IN_LINES = re.compile(_OBEYED.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def escaped(text: str, *, lines: bool = False) -> str:
    """Replace each control character in `text` by its escape, such as `\\u001b`; this is also valid in a JSON string.

    With `lines`, line feeds and tabs are kept.
    """
    return (_OBEYED_IN_LINES if lines else _OBEYED).sub(lambda found: f"\\u{ord(found[0]):04x}", text)
