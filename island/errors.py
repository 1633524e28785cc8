"""One hierarchy of errors: whose fault it is, what happened, and what to do next.

Every error that may reach a person is an `IslandError`. Its text is one or two lines:
what happened and why (`message`), then what to do (`hint`). `code` is stable and for
programs; `status` is the HTTP status under which the API and the gateway report it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Blame = Literal["caller", "peer", "island", "engine"]


class IslandError(Exception):
    """Base of everything that island raises on purpose.

    `blame` names the side that has to change something: the caller, a peer, this island
    (its disk, its configuration), or the Spark engine. The cause is kept by `raise ... from`.
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
        """The same on one line, for reasons that are stored and messages that Livy's clients show."""
        text = f"{self.message.rstrip('.')}. {self.hint}" if self.hint else self.message
        return text.replace("\n", " ")


class BadInput(IslandError):
    """The caller's input is malformed, of the wrong type, or over a limit."""

    blame, code, status = "caller", "bad_input", 400


class OverLimit(BadInput):
    """A file takes more memory, processor time or rows to read than this island allows for one file."""

    code, status = "over_limit", 413


class NotFound(IslandError):
    """The thing that was named does not exist, or is not visible to the caller."""

    blame, code, status = "caller", "not_found", 404


class Ambiguous(IslandError):
    """A name or prefix fits several things; the hint lists them."""

    blame, code, status = "caller", "ambiguous", 409


class Conflict(IslandError):
    """The request contradicts what is stored (a name in use, another network, another hash)."""

    blame, code, status = "caller", "conflict", 409


class Unauthenticated(IslandError):
    """No token, or a token that this island does not know."""

    blame, code, status = "caller", "unauthenticated", 401


class Denied(IslandError):
    """The caller is known, and may not do this."""

    blame, code, status = "caller", "denied", 403


class PeerMisbehaved(IslandError):
    """A peer sent something malformed, oversized, wrongly signed or false. Ends the session, never a loop."""

    blame, code, status = "peer", "peer_misbehaved", 502


class PeerRefused(IslandError):
    """A peer answered a well-formed request with an error of its own."""

    blame, code, status = "peer", "peer_refused", 502


class Unreachable(IslandError):
    """The island or holder that is needed does not answer; the text says who and since when."""

    blame, code, status = "peer", "unreachable", 504


class Corrupt(IslandError):
    """Stored or received bytes do not match their hash or their format."""

    blame, code, status = "island", "corrupt", 500


class FilesChanged(IslandError):
    """Files of a published snapshot are not the bytes that were published."""

    blame, code, status = "island", "changed", 409


class Full(IslandError):
    """A quota is reached or the disk is full; nothing that was accepted is lost."""

    blame, code, status = "island", "full", 507


class ConfigError(IslandError):
    """The configuration file or the home is not usable; names file, key and nearest known key."""

    blame, code, status = "caller", "config", 400


class EngineFailed(IslandError):
    """Livy or Spark refused, died, or does not answer."""

    blame, code, status = "engine", "engine_failed", 502


class Unsupported(IslandError):
    """Valid input that this version cannot handle (a type, a kind); never called corrupt."""

    blame, code, status = "caller", "unsupported", 400


def known_error(name: str) -> type[IslandError] | None:
    """The class of this module that has a name; None where there is none."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, IslandError) else None
