"""Who may ask a reward server: with a key, whoever shows it; without one, programs on this machine."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi import HTTPException, Request

from ..net.credentials import is_local

IPV6_NETWORK = 64  # bits: one client has all the addresses below


def require(key: str) -> Callable[[Request], Awaitable[None]]:
    """The check for `key` as a bearer token, in constant time."""
    expected = f"Bearer {key}".encode()

    async def check(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, expected):
            header = {"WWW-Authenticate": "Bearer"}
            raise HTTPException(401, "this server wants its key as a bearer token", header)

    return check


async def local_only(request: Request) -> None:
    """The check of a server without a key: it listens on this machine, where a browser opens foreign pages.

    A page names its own host, even where that host's name has been made to lead to this machine (DNS
    rebinding), or else its origin.
    """
    if "origin" in request.headers:
        raise HTTPException(403, "this server has no key and does not answer web pages; set a key")
    try:
        host = urlsplit(f"http://{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        host = ""
    if not is_local(host):
        raise HTTPException(
            421,
            "this server has no key and answers only as localhost or 127.0.0.1; set a key for other names",
        )


def address_of(request: Request) -> str:
    """The client's address; of IPv6 its network. Headers that a proxy adds are not believed."""
    host = request.client.host if request.client else ""
    if ":" in host:
        return str(ipaddress.ip_network(f"{host.partition('%')[0]}/{IPV6_NETWORK}", strict=False))
    return host
