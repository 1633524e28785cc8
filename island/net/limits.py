"""Limits of peer sessions. Tests use smaller values."""

from __future__ import annotations

from dataclasses import dataclass

STREAM_WINDOW = 256 * 1024
"""Bytes that may be sent in one direction of one stream before they are acknowledged with credit. Part of the
protocol."""

BLOCK_COST = 64
"""Minimum credit for a block in bytes, so that the number of small blocks is limited too. Part of the protocol."""


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """Limits of peer sessions. Durations are in seconds, sizes in bytes."""

    ping_s: float = 10.0
    """Interval of keepalives, which the dialler sends."""
    dead_s: float = 25.0
    """Timeout of a session that receives nothing, or whose waiting output makes no progress."""
    connect_s: float = 5.0
    """Timeout for connecting to an address, including TLS."""
    head_start_s: float = 0.3
    """Time after which the next way to reach an island is tried, if the one before has neither succeeded nor failed."""
    first_byte_s: float = 3.0
    """Timeout for the first byte on an accepted connection."""
    handshake_s: float = 8.0
    """Timeout of the handshake; on the listening side it includes TLS."""
    retire_s: float = 5.0
    """Time for which a session that was replaced still answers."""
    idle_s: float = 120.0
    """Time after which the dialler closes a bulk session without streams; the listener closes it after twice that."""
    redial_base_s: float = 1.0
    """Base of the backoff between attempts to dial an island."""
    redial_cap_s: float = 15.0
    """Maximum backoff between attempts to dial an island."""
    settled_s: float = 15.0
    """A session that ends earlier counts as a failure, so that the next one is made after a backoff."""
    pause_s: float = 15.0
    """First pause after repeated violations of the protocol; doubled each time, up to `pause_cap_s`."""
    pause_cap_s: float = 600.0
    mesh: int = 32
    """Maximum number of islands that this island dials."""
    sessions: int = 512
    """Maximum number of accepted sessions of both classes. For a further one, an idle bulk session ends; if there is
    none, it is refused."""
    reserved: int = 64
    """The part of `sessions` that only control sessions with known islands can use."""
    shaking: int = 64
    """Maximum number of accepted connections in the handshake, in addition to `sessions`; a new one closes an
    older one."""
    shaking_per_address: int = 32
    """Maximum number of accepted connections in the handshake per network address."""
    calls: int = 64
    """Maximum number of concurrent requests (or streams) from this side of a session; the other side may have
    twice as many."""
    relayed: int = 32
    """Maximum number of concurrent requests (or streams) in one session that this side relays for other islands."""
    relayed_per_island: int = 16
    """Maximum number of concurrent requests and streams that this island relays for one other island."""
    stall_s: float = 30.0
    """Time within which the receiver of a relayed stream must accept a block."""
    frames_per_s: float = 5000.0
    """Frames per second of one session that are read; more wait in the connection."""
    frame_burst: int = 5000
    """Frames that are read without a delay after a pause."""
    push_queue: int = 1024
    """Maximum number of pushes of one peer that wait for their handler; more are dropped and counted."""
    push_bytes: int = 4 * 1024 * 1024
    """Maximum size of the pushes of one peer that wait for their handler; more are dropped and counted."""
    write_queue: int = 1024 * 1024
    """Maximum size of the output that waits in a control session; above it, pushes are not sent."""

    @classmethod
    def within(cls, connections: int) -> PeerLimits:
        """Return the default limits, reduced to at most `connections` accepted connections (at least 2)."""
        usual = cls()
        shaking = min(usual.shaking, connections // 2)
        sessions = min(usual.sessions, connections - shaking)
        return cls(sessions=sessions, reserved=min(usual.reserved, sessions // 4), shaking=shaking)
