"""What peer sessions allow, in one place; tests make them small."""

from __future__ import annotations

from dataclasses import dataclass

STREAM_WINDOW = 256 * 1024
"""Bytes that may be under way in one direction of one stream; part of the protocol."""

BLOCK_COST = 64
"""The least that a block takes of the window, so that small ones are bounded too; part of the protocol."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Durations in seconds, sizes in bytes."""

    ping_s: float = 10.0
    """Between two keepalives; the dialler pings."""
    dead_s: float = 25.0
    """Silence, or no progress of what waits to be sent, after which a session is over."""
    connect_s: float = 5.0
    handshake_s: float = 10.0
    retire_s: float = 5.0
    """How long a session that was replaced still answers."""
    idle_s: float = 120.0
    """After which a bulk session without streams is closed."""
    redial_base_s: float = 1.0
    redial_cap_s: float = 15.0
    pause_s: float = 15.0
    """First pause of a repeat offender; doubled each time, up to `pause_cap_s`."""
    pause_cap_s: float = 600.0
    mesh: int = 32
    """Islands that this one dials."""
    sessions: int = 512
    """Connections that are accepted at once, of both classes."""
    shaking: int = 64
    """Of these, how many may be in the handshake."""
    shaking_per_address: int = 32
    """And how many from one network address."""
    calls: int = 64
    """Requests (or streams) of one session under way from this side; the other side may have twice as many."""
    push_queue: int = 1024
    """Pushes of one peer that wait for their handler; more are dropped and counted."""
    write_queue: int = 1024 * 1024
    """Bytes that may wait in a control session before pushes are turned away."""
