"""What peer sessions and connections to the user port allow, in one place; tests make them small."""

from __future__ import annotations

from dataclasses import dataclass

STREAM_WINDOW = 256 * 1024
"""Bytes that may be under way in one direction of one stream; part of the protocol."""

BLOCK_COST = 64
"""The least that a block takes of the window, so that small ones are bounded too; part of the protocol."""


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """Durations in seconds, sizes in bytes."""

    ping_s: float = 10.0
    """Between two keepalives; the dialler pings."""
    dead_s: float = 25.0
    """Silence, or no progress of what waits to be sent, after which a session is over."""
    connect_s: float = 5.0
    first_byte_s: float = 3.0
    """Within which an accepted connection must have sent something."""
    handshake_s: float = 8.0
    """For TLS and the proofs together on the listening side, for the proofs on the dialling one."""
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
    """Accepted sessions, of both classes, at which no further connection is accepted."""
    shaking: int = 64
    """Connections that may be in the handshake beside them; the next one closes an older one."""
    shaking_per_address: int = 32
    """And how many from one network address."""
    calls: int = 64
    """Requests (or streams) of one session under way from this side; the other side may have twice as many."""
    push_queue: int = 1024
    """Pushes of one peer that wait for their handler; more are dropped and counted."""
    write_queue: int = 1024 * 1024
    """Bytes that may wait in a control session before pushes are turned away."""

    @classmethod
    def within(cls, connections: int) -> PeerLimits:
        """The usual limits, with at most `connections` accepted ones, at least 2."""
        usual = cls()
        shaking = min(usual.shaking, connections // 2)
        return cls(sessions=min(usual.sessions, connections - shaking), shaking=shaking)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What connections to the user port may hold. Durations in seconds.

    There is no limit by address: only this machine connects, and everybody behind a tunnel or a reverse
    proxy has the same address.
    """

    connections: int = 1024
    """Connections at once; the next one closes the oldest that waits for a request."""
    head_s: float = 10.0
    """For a whole request head, from the connection or from the first byte of a later request."""
    stall_s: float = 30.0
    """Without a byte of a request's body that is being waited for."""
    idle_s: float = 75.0
    """Between two requests."""
