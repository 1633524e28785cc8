"""Detects cross-site requests of browsers to the user port, which are refused (CSRF, DNS rebinding). No I/O.

A browser adds cached credentials (HTTP Basic) to every request to this port, regardless of which page
caused it. It also sends the host name that it used (`Host`) and, for requests that can do harm, the
origin of the page (`Origin`) or its relation to this server (`Sec-Fetch-Site`). Pages cannot change
these three headers. Programs such as curl and Livy's clients send only `Host`. Content types are not
checked, because pages and programs use the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from island.config import is_loopback, split_host
from island.errors import BadInput, ConfigError, Denied

HostPort = tuple[str, int | None]

_OWN_SITES = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site for requests of this server's pages, and for addresses that a user typed or bookmarked."""
_DEFAULT_PORTS = (80, 443)


class SameOrigin:
    """Checks requests against the host names of this server: loopback names and addresses, and `allowed`.

    Raises `ConfigError` if an entry of `allowed` is not HOST or HOST:PORT. A loopback host is accepted with any
    port, because a tunnel (`ssh -L 9000:127.0.0.1:8990`) changes it, and because pages of other sites do not have
    such a host. The listening address is always a loopback address.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = [split_host(text, "listen.allowed_hosts") for text in allowed]

    def check(self, hosts: Sequence[str], origins: Sequence[str], sites: Sequence[str], *, http_1_0: bool) -> None:
        """Raise `Denied` for a request that a page of another site may have caused.

        `hosts` are the values of Host and of an absolute request target, `origins` those of Origin, `sites`
        those of Sec-Fetch-Site. Raises `BadInput` for an HTTP/1.1 request without Host, which is invalid.
        HTTP/1.0 does not require Host, and browsers do not use it.
        """
        if not hosts and not http_1_0:
            raise BadInput("the request has no Host header", hint="HTTP/1.1 requires one.", code="no_host")
        for host in hosts:
            self._check_host(host)
        own = _split(hosts[0]) if hosts else None
        for origin in origins:
            self._check_origin(origin, own)
        for site in sites:
            if site not in _OWN_SITES:
                raise Denied(
                    "this request was caused by a page of another site",
                    hint="Enter the address of this island in the browser, or use a command or a program.",
                    code="foreign_origin",
                )

    def _check_host(self, text: str) -> None:
        found = _split(text)
        if found is None or not (is_loopback(found[0]) or self._is_allowed(found)):
            raise Denied(
                f"'{_shown(text)}' is not a host name of this server",
                hint="Use 127.0.0.1 or localhost; for a reverse proxy, add its host name to listen.allowed_hosts"
                " in island.toml.",
                code="foreign_host",
            )

    def _check_origin(self, text: str, own: HostPort | None) -> None:
        scheme, _, authority = text.partition("://")
        found = _split(authority) if scheme in {"http", "https"} else None
        if found is None or not (found == own or self._is_allowed(found)):
            raise Denied(
                f"this request was caused by a page of another origin, '{_shown(text)}'",
                hint="If that page is this server behind a reverse proxy, add its host name to"
                " listen.allowed_hosts in island.toml.",
                code="foreign_origin",
            )

    def _is_allowed(self, found: HostPort) -> bool:
        host, port = found
        return any(
            host == name and (only is None or only == port or (port is None and only in _DEFAULT_PORTS))
            for name, only in self._allowed
        )


def is_browser(headers: Mapping[str, str]) -> bool:
    """Return whether a browser sent these headers. A browser is not prompted for a password, because it caches it.

    Returns False if that is not certain, because some programs (wget, Apache HttpClient, Java's HTTP client) send
    credentials only after a prompt. `Accept: text/html` is not used, because Java's client sends it too.
    """
    return (
        "Origin" in headers
        or any(name.lower().startswith("sec-fetch-") for name in headers)
        or headers.get("User-Agent", "").startswith("Mozilla/")
    )


def _split(text: str) -> HostPort | None:
    try:
        return split_host(text, "Host")
    except ConfigError:
        return None


def _shown(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])
