"""Numbers with their units, as people read them."""

from __future__ import annotations

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(count: float) -> str:
    """A number of bytes in three digits, as `12 B`, `3.4 MiB`, `858 MiB`: powers of 1,024, as in the configuration."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in _UNITS:
        count /= 1024
        if abs(count) < 1023.5 or unit == _UNITS[-1]:  # which is the last number that is not rounded to 1024
            break
    return f"{count:.0f} {unit}" if abs(count) >= 99.95 else f"{count:.1f} {unit}"
