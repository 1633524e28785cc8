"""The users of this island who have tokens of their own: add, rotate, revoke. Each change is journaled."""

from __future__ import annotations

import dataclasses
import sqlite3
from dataclasses import dataclass

from island.errors import BadInput, Conflict, Denied, Full, NotFound
from island.kernel.db import Database
from island.kernel.ports import Clock, Rng
from island.trust import journal, store
from island.trust.service import Trust
from island.trust.users import Principal, Role, Tokens, UserRow, check_user_name, new_token, token_hash

MAX_USERS = 10_000
MAX_VALID_S = 3660 * 86400.0
"""Longest time until a token expires, in seconds."""


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A user and her new token, which is not stored."""

    user: UserRow
    token: str


class UserList:
    """The users in state.db. Every change takes effect in `tokens` before the call returns. Call `load` before use."""

    def __init__(self, state: Database, tokens: Tokens, trust: Trust, clock: Clock, rng: Rng) -> None:
        self._state, self._tokens, self._trust, self._clock, self._rng = state, tokens, trust, clock, rng

    async def load(self) -> None:
        """Accept the tokens of the stored users."""
        self._tokens.put_users(await self._state.read(store.users))

    async def add(self, caller: Principal, name: str, role: Role, valid_s: float = 0.0) -> IssuedToken:
        """Add a user. Her token expires after `valid_s` seconds; 0: it does not.

        Raises `BadInput` for the name or the time, `Conflict` if there is or was such a user, and `Full`.
        """
        check_user_name(name)
        now, token = self._clock.wall(), new_token(role, self._rng)
        expires = _expires(now, valid_s)
        user = UserRow(name, role, token_hash(token), created=now, issued=now, expires=expires, revoked=None)

        def write(conn: sqlite3.Connection) -> UserRow:
            if (earlier := store.user(conn, name)) is not None:
                raise Conflict(
                    f"there is a user {name} already"
                    + ("" if earlier.token_hash is not None else ", whose token was revoked"),
                    hint=f"`island user rotate {name}` makes a new token for the same person. Choose another name for"
                    f" another person: the jobs of {name} can be seen under this one.",
                )
            if len(store.users(conn)) >= MAX_USERS:
                raise Full(f"this island has {MAX_USERS} users, the maximum")
            return self._store(conn, caller, "user.add", user)

        return IssuedToken(await self._state.write(write, then=self._accept), token)

    async def rotate(self, caller: Principal, name: str, valid_s: float | None = None) -> IssuedToken:
        """Replace the token of a user; the old one is invalid at once. One that was revoked is active again.

        `valid_s` is as in `add`; None keeps the time at which the old token expires. A user may replace her own
        token, but not prolong it. Raises `NotFound`, `Denied`, and `BadInput` if the old token has expired or was
        revoked and `valid_s` is None.
        """
        if valid_s is not None and not caller.is_administrator:
            raise Denied("only an administrator may change when a token expires", hint="Leave out the time.")
        now = self._clock.wall()

        def write(conn: sqlite3.Connection) -> tuple[UserRow, str]:
            user = self._find(conn, caller, name)
            if valid_s is None and user.state(now) != "active":
                raise BadInput(
                    f"the token of {name} {'was revoked' if user.token_hash is None else 'has expired'}",
                    hint="Say for how long the new one is valid: --expires DAYS, or --expires 0 for no end.",
                )
            token = new_token(user.role, self._rng)
            expires = user.expires if valid_s is None else _expires(now, valid_s)
            new = dataclasses.replace(user, token_hash=token_hash(token), issued=now, expires=expires, revoked=None)
            return self._store(conn, caller, "user.rotate", new), token

        user, token = await self._state.write(write, then=lambda found: self._accept(found[0]))
        return IssuedToken(user, token)

    async def revoke(self, caller: Principal, name: str) -> UserRow:
        """Revoke the token of a user, which is invalid at once; her jobs continue. No effect if it was revoked before.

        A user may revoke her own token. Raises `NotFound`.
        """

        def write(conn: sqlite3.Connection) -> UserRow:
            user = self._find(conn, caller, name)
            if user.token_hash is None:
                return user
            revoked = dataclasses.replace(user, token_hash=None, revoked=self._clock.wall())
            return self._store(conn, caller, "user.revoke", revoked)

        return await self._state.write(write, then=self._accept)

    async def show(self, caller: Principal, name: str) -> UserRow:
        """The user with this name. Raises `NotFound`, also for a user who asks for another one."""
        return await self._state.read(lambda conn: self._find(conn, caller, name))

    async def visible(self, caller: Principal) -> list[UserRow]:
        """All users, also revoked ones, by name; for a user, only herself."""
        found = await self._state.read(store.users)
        return [user for user in found if caller.is_administrator or user.name == caller.user]

    def _find(self, conn: sqlite3.Connection, caller: Principal, name: str) -> UserRow:
        user = store.user(conn, name) if caller.is_administrator or caller.user == name else None
        if user is None:
            raise NotFound(
                f"there is no user '{name[:80]}'" + ("" if caller.is_administrator else " that you may see"),
                hint="`island user ls` lists the users. The tokens in the home folder do not belong to any.",
            )
        return user

    def _store(self, conn: sqlite3.Connection, caller: Principal, act: str, user: UserRow) -> UserRow:
        store.put_user(conn, user)
        journal.append(
            conn,
            at=self._clock.wall(),
            who=self._trust.who(caller.user),
            act=act,
            what=user.name,
            outcome="done",
            detail={"role": user.role, "expires": user.expires},
        )
        return user

    def _accept(self, user: UserRow) -> None:
        self._tokens.put_users([user])


def _expires(now: float, valid_s: float) -> float | None:
    if valid_s == 0:
        return None
    if not 1 <= valid_s <= MAX_VALID_S:
        raise BadInput(
            "a token is valid for 1 second to 3660 days",
            hint="Use --expires within these limits; 0 means that it does not expire.",
        )
    return now + valid_s
