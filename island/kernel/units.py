"""Numbers with units, for display."""

from __future__ import annotations

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(count: float) -> str:
    """Format a number of bytes as `12 B`, `3.4 MiB` or `858 MiB`. Units are powers of 1,024, as in island.toml."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in _UNITS:
        count /= 1024
        if abs(count) < 1023.5 or unit == _UNITS[-1]:  # from 1023.5 on, the number would be rounded to 1024
            break
    return f"{count:.0f} {unit}" if abs(count) >= 99.95 else f"{count:.1f} {unit}"
