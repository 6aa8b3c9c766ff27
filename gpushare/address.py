"""Network addresses as people write them: "host:port", "[::1]:7480".

Pure: the standard library's `ipaddress` alone, no look-up of names. Invariant: what passes is one line of
ASCII that grpc reads the same way, so that a check made on it (is it loopback?) holds for the socket that
is opened.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from gpushare.names import TextError
from gpushare.quantity import QuantityError, parse_int

DEFAULT_PORT = 7480
ACCEPTED = 'HOST:PORT ("gpu01.lab:7480", "127.0.0.1:7480", "[::1]:7480")'

_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([-A-Za-z0-9_]{0,62})(\.[A-Za-z0-9]([-A-Za-z0-9_]{0,62}))*")
_SPLIT = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([^:]*))?")


class Address(NamedTuple):
    """A host (name or IP literal without brackets) and a port; `str()` gives the form that grpc takes."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, field: str = "address", *, minimum_port: int = 1) -> Address:
    """A missing port is `DEFAULT_PORT`. A listener may pass `minimum_port=0` for "any free port"."""
    match = _SPLIT.fullmatch(text)
    if match is None or not text.isascii():
        raise TextError(field, text, "is no address", ACCEPTED)
    host, port_text = match.groups()
    if host.startswith("["):
        host = host[1:-1]
        if not _is_ip(host) or ":" not in host:
            raise TextError(field, text, "has brackets around something that is no IPv6 address", ACCEPTED)
    elif host == "":
        raise TextError(field, text, "has no host", ACCEPTED)
    elif not _is_ip(host) and (_HOST_NAME.fullmatch(host) is None or re.fullmatch(r"[0-9.]+", host)):
        raise TextError(field, text, "has no valid host", ACCEPTED)
    if port_text is None:
        return Address(host, DEFAULT_PORT)
    try:
        return Address(host, parse_int(port_text, field, minimum=minimum_port, maximum=65535))
    except QuantityError as err:
        raise TextError(field, text, "has no valid port", ACCEPTED) from err


def is_loopback(host: str) -> bool:
    """True only for addresses that never leave this machine. Names other than localhost are not looked up."""
    return ipaddress.ip_address(host).is_loopback if _is_ip(host) else host.lower() == "localhost"


def is_wildcard(host: str) -> bool:
    """True for 0.0.0.0 and ::, which name every interface and so no address that a client can dial."""
    return _is_ip(host) and ipaddress.ip_address(host).is_unspecified


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host
