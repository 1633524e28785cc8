"""Whether this machine delivers multicast on its loopback interface."""

from __future__ import annotations

import secrets
import socket

import pytest

from tests.missing import missing

LOOPBACK, GROUP = "127.0.0.1", "239.255.93.1"


@pytest.fixture(scope="session")
def loopback() -> str:
    """The address of the loopback interface. Without multicast there, a test is skipped; in CI it fails."""
    try:
        _deliver_one_datagram()
    except OSError as error:
        reason = f"this machine delivers no multicast on {LOOPBACK}: {error}"
        missing(reason)
    return LOOPBACK


def _deliver_one_datagram() -> None:
    interface, content = socket.inet_aton(LOOPBACK), secrets.token_bytes(16)
    with socket.socket(type=socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        receiver.bind(("", 0))
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + interface)
        receiver.settimeout(5)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        sender.sendto(content, (GROUP, receiver.getsockname()[1]))
        while receiver.recv(100) != content:
            pass
