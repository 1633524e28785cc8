"""Which requests to the user port a web page of somebody else may have caused; they are refused.

A browser adds what it has cached (HTTP Basic) to every request to this port, whichever page asked for
it. It also names the host that it believes to talk to (`Host`), and, on requests that can do harm, the
page's origin (`Origin`) or its relation to this server (`Sec-Fetch-Site`); a page can change none of the
three. Programs such as curl and Livy's clients send `Host` alone. Content types are not looked at:
pages and programs use the same ones. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from island.config import is_loopback, split_host
from island.errors import BadInput, ConfigError, Denied

HostPort = tuple[str, int | None]

_OWN_SITES = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site for this server's own pages, and for what a person typed or bookmarked."""
_DEFAULT_PORTS = (80, 443)


class SameOrigin:
    """Checks requests against the hosts under which this server is known: loopback ones, and `allowed`.

    A loopback host is good with any port, because a tunnel (`ssh -L 9000:127.0.0.1:8990`) changes it, and
    because no page of somebody else comes from such a host. The listener's address is always one of them.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = [split_host(text, "listen.allowed_hosts") for text in allowed]

    def check(self, hosts: Sequence[str], origins: Sequence[str], sites: Sequence[str], *, http_1_0: bool) -> None:
        """Raise `Denied` for a request that a foreign page may have caused, by the values of its headers.

        `hosts` are those of Host and of an absolute request target, `origins` of Origin, `sites` of
        Sec-Fetch-Site. Raises `BadInput` for a request of HTTP/1.1 without Host, which that protocol
        forbids. One of HTTP/1.0 needs none: no browser speaks it.
        """
        if not hosts and not http_1_0:
            raise BadInput("the request has no Host header", hint="HTTP/1.1 demands one.", code="no_host")
        for host in hosts:
            self._check_host(host)
        own = _split(hosts[0]) if hosts else None
        for origin in origins:
            self._check_origin(origin, own)
        for site in sites:
            if site not in _OWN_SITES:
                raise Denied(
                    "this request was caused by a page of another site",
                    hint="Type the address of this island into the browser, or use its pages, a command or a program.",
                    code="foreign_origin",
                )

    def _check_host(self, text: str) -> None:
        found = _split(text)
        if found is None or not (is_loopback(found[0]) or self._is_allowed(found)):
            raise Denied(
                f"this server is not known under the name '{_shown(text)}'",
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
    """Whether a browser sent these headers: it must not be asked for a password that it would keep.

    When in doubt, no: programs that send credentials only when asked (wget, Apache's HttpClient, Java's own
    client) need to be. `Accept: text/html` is no sign of a browser, because Java's client sends it too.
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
