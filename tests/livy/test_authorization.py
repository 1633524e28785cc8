"""The login that the daemon and `island doctor` send to the site's own Livy."""

from __future__ import annotations

from island.livy.authorization import authorization, own_livy_login


def test_a_password_without_a_user_is_not_sent() -> None:
    assert authorization(own_livy_login("", "right")) == {}
    assert authorization(own_livy_login("me", "right")) == {"Authorization": "Basic bWU6cmlnaHQ="}
    assert authorization("token") == {"Authorization": "Bearer token"}
