"""The exceptions of island: what happened, which side has to act, and what to do next.

Every error that is shown to users is an `IslandError`. Its text is one or two lines: what
happened and why (`message`), then what to do (`hint`). `code` is stable, for programs;
`status` is the HTTP status with which the API and the gateway report the error.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Blame = Literal["caller", "peer", "island", "engine"]


class IslandError(Exception):
    """Base class of the exceptions that island raises.

    `blame` names the side that has to change something: the caller, a peer, this island
    (its disk, its configuration), or the Spark engine. Use `raise ... from` to keep the cause.
    """

    blame: ClassVar[Blame] = "island"
    code: str = "island_error"
    status: int = 500

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    @property
    def line(self) -> str:
        """Message and hint on one line, for stored reasons and for messages in Livy's answers."""
        text = f"{self.message.rstrip('.')}. {self.hint}" if self.hint else self.message
        return text.replace("\n", " ")


class BadInput(IslandError):
    """The caller's input is malformed, of the wrong type, or over a limit."""

    blame, code, status = "caller", "bad_input", 400


class OverLimit(BadInput):
    """Reading a file needs more memory, CPU time or rows than this island allows for one file."""

    code, status = "over_limit", 413


class Unreadable(BadInput):
    """The operating system cannot read a file: its permissions, or a failing disk. The file itself may be valid."""

    code = "unreadable"


class NotFound(IslandError):
    """The named object does not exist, or is not visible to the caller."""

    blame, code, status = "caller", "not_found", 404


class Ambiguous(IslandError):
    """A name or prefix matches several objects; the hint lists them."""

    blame, code, status = "caller", "ambiguous", 409


class Conflict(IslandError):
    """The request conflicts with stored state (a name in use, another network, another hash)."""

    blame, code, status = "caller", "conflict", 409


class Unauthenticated(IslandError):
    """The request has no token, or a token that is not valid at this island."""

    blame, code, status = "caller", "unauthenticated", 401


class Denied(IslandError):
    """The caller is authenticated but does not have permission for the operation."""

    blame, code, status = "caller", "denied", 403


class TooManyRequests(IslandError):
    """The caller has too many requests of this kind under way; the same request may succeed after a second."""

    blame, code, status = "caller", "too_many_requests", 429


class PeerMisbehaved(IslandError):
    """A peer violated a protocol: it sent something malformed, oversized, wrongly signed or false.

    Ends the session with that peer; loops of this island continue.
    """

    blame, code, status = "peer", "peer_misbehaved", 502


class PeerRefused(IslandError):
    """A peer answered a request with an error."""

    blame, code, status = "peer", "peer_refused", 502


class Unreachable(IslandError):
    """A required island or server does not answer; the message names it."""

    blame, code, status = "peer", "unreachable", 504


class Corrupt(IslandError):
    """Stored or received bytes do not match their hash or their format."""

    blame, code, status = "island", "corrupt", 500


class FilesChanged(IslandError):
    """Files of a published snapshot were changed after they were published."""

    blame, code, status = "island", "changed", 409


class Full(IslandError):
    """A quota is reached or the disk is full. Data that were accepted before are not lost."""

    blame, code, status = "island", "full", 507


class DiskFailed(IslandError):
    """A database cannot be read or written because of this island's disk. The same operation may succeed later."""

    blame, code, status = "island", "disk_failed", 503


class ConfigError(IslandError):
    """The configuration, or a file in the home folder, is not usable; the message names the file and the key."""

    blame, code, status = "caller", "config", 400


class EngineFailed(IslandError):
    """Livy or Spark refused a request, exited, or does not answer."""

    blame, code, status = "engine", "engine_failed", 502


class Unsupported(IslandError):
    """The input is valid but not supported by this version, for example a column type. It is not `Corrupt`."""

    blame, code, status = "caller", "unsupported", 400


def known_error(name: str) -> type[IslandError] | None:
    """Return the exception class of this module with the name `name`, or None."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, IslandError) else None
