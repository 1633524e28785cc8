"""How a client logs in to a Livy server."""

from __future__ import annotations

import base64


def authorization(auth: str | tuple[str, str] | None) -> dict[str, str]:
    """Return the headers for a token (sent as Bearer), for a pair of user and password (HTTP Basic), or for neither."""
    if auth is None:
        return {}
    if isinstance(auth, str):
        return {"Authorization": f"Bearer {auth}"}
    return {"Authorization": "Basic " + base64.b64encode(f"{auth[0]}:{auth[1]}".encode()).decode()}


def own_livy_login(user: str, password: str) -> tuple[str, str] | None:
    """Return user and password for the site's own Livy; None if it needs no login, because no user is configured."""
    return (user, password) if user else None
