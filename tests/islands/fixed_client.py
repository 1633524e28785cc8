"""The client of an engine that does not change, in tests."""

from __future__ import annotations

from collections.abc import Callable

from island.livy.client import LivyClient


class FixedClient:
    """Gives one client, or that which a function returns. Whoever made the client closes it."""

    def __init__(self, client: LivyClient | Callable[[], LivyClient]) -> None:
        self._client = client

    def __call__(self) -> LivyClient:
        return self._client if isinstance(self._client, LivyClient) else self._client()

    async def close(self) -> None:
        """Do nothing."""
