"""Which requests a foreign web page may have caused: decided by Host, Origin and Sec-Fetch-Site."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.config import is_loopback, split_host
from island.errors import BadInput, ConfigError, Denied
from island.net.same_origin import SameOrigin, is_browser

ALLOWED = SameOrigin(["Island.Example.", "ported.example:8443", "tls.example:443", "[2001:DB8:0::1]:8990"])


def code(
    hosts: list[str], origins: list[str] | None = None, sites: list[str] | None = None, *, http_1_0: bool = False
) -> str:
    """The code of the refusal, or "" if there is none."""
    try:
        ALLOWED.check(hosts, origins or [], sites or [], http_1_0=http_1_0)
    except (Denied, BadInput) as error:
        return error.code
    return ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Island.Example.", ("island.example", None)),
        ("localhost:9000", ("localhost", 9000)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[0:0::1]", ("::1", None)),
        ("[::1]:8990", ("::1", 8990)),
        ("xn--bcher-kva.example", ("xn--bcher-kva.example", None)),
        ("a_b.example", ("a_b.example", None)),
    ],
)
def test_hosts_have_one_spelling(text: str, expected: tuple[str, int | None]) -> None:
    assert split_host(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", "a.b..", ":80", "a:", "a:b", "a:65536", "a:٣", "http://a", "a/b", "u@a", "*.a", "bücher.example",
     "::1", "[::1", "[1.2.3.4]", "[::1%lo]", "[::1]80", "a b", "a,b", "a\n", "a" * 64, "a." * 127 + "a"],
)  # fmt: skip
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ConfigError, match="not HOST or HOST:PORT"):
        split_host(text)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost.:1", "127.255.255.254", "[::1]:1", "island.example", "island.example:9",
     "ported.example:8443", "tls.example", "tls.example:443", "[2001:db8::1]:8990"],
)  # fmt: skip
def test_known_hosts(host: str) -> None:
    assert code([host]) == ""


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.example", "ported.example", "ported.example:80", "tls.example:8443", "[2001:db8::1]:1",
     "[2001:db8::2]:8990", "0.0.0.0", "[::]", "128.0.0.1", "x.localhost"],
)  # fmt: skip
def test_unknown_hosts(host: str) -> None:
    assert code([host]) == "foreign_host"
    assert code(["localhost", host]) == "foreign_host"


@given(st.ip_addresses())
def test_an_address_is_known_only_if_it_is_loopback(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    text = f"[{address}]" if address.version == 6 else str(address)
    assert (code([text]) == "") == is_loopback(str(address))


@pytest.mark.parametrize(
    ("host", "origin", "good"),
    [
        ("localhost:9000", "http://localhost:9000", True),
        ("localhost:9000", "http://LOCALHOST.:9000", True),
        ("localhost:9000", "http://localhost", False),
        ("localhost:9000", "http://localhost:9001", False),
        ("localhost:9000", "http://127.0.0.1:9000", False),
        ("[::1]:9000", "http://[0::1]:9000", True),
        ("127.0.0.1:8990", "https://island.example", True),
        ("127.0.0.1:8990", "https://tls.example", True),
        ("island.example", "https://island.example", True),
        ("127.0.0.1:8990", "https://evil.example", False),
        ("127.0.0.1:8990", "null", False),
        ("127.0.0.1:8990", "", False),
        ("127.0.0.1:8990", "127.0.0.1:8990", False),
        ("127.0.0.1:8990", "file://127.0.0.1:8990", False),
        ("127.0.0.1:8990", "moz-extension://127.0.0.1:8990", False),
        ("127.0.0.1:8990", "http://127.0.0.1:8990/", False),
        ("127.0.0.1:8990", "http://any@127.0.0.1:8990", False),
        ("127.0.0.1:8990", "http://127.0.0.1:8990 http://evil.example", False),
    ],
)
def test_origins(host: str, origin: str, good: bool) -> None:
    assert code([host], [origin]) == ("" if good else "foreign_origin")
    assert code([host], [origin, "http://evil.example"]) == "foreign_origin"


@pytest.mark.parametrize(
    ("site", "good"),
    [("same-origin", True), ("none", True), ("same-site", False), ("cross-site", False), ("", False), ("new", False)],
)
def test_sites(site: str, good: bool) -> None:
    assert code(["localhost"], sites=[site]) == ("" if good else "foreign_origin")
    assert code(["localhost"], ["http://localhost"], [site]) == ("" if good else "foreign_origin")


def test_without_a_host() -> None:
    assert code([], http_1_0=True) == ""
    assert code([]) == "no_host"
    assert code([""]) == "foreign_host"
    assert code([], ["http://localhost"], http_1_0=True) == "foreign_origin"


def test_a_refusal_cannot_move_the_cursor() -> None:
    with pytest.raises(Denied) as caught:
        ALLOWED.check(["\x1b[2Jevil"], [], [], http_1_0=False)
    assert "\x1b" not in caught.value.message


def test_browsers_are_known_by_what_programs_do_not_send() -> None:
    assert is_browser({"sec-fetch-dest": "document"})
    assert is_browser({"Origin": "null"})
    assert is_browser({"User-Agent": "Mozilla/5.0 (X11)"})
    for agent in ("curl/7.88.1", "python-requests/2.32", "Wget/1.21", "Apache-HttpClient/4.5"):
        assert not is_browser({"User-Agent": agent, "Accept": "*/*", "Content-Type": "application/json"})
    assert not is_browser({"User-Agent": "Java/17.0.9", "Accept": "text/html, image/gif, image/jpeg, */*; q=0.2"})
