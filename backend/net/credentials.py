"""Where the key of a chat endpoint or reward server may be sent: only to addresses that the user named.

The key comes from the environment alone. An address may come from somebody else's workflow file, so a server
that demands the key does not get it for that. The key goes to this machine, over https to the hosts in
REPRISE_ENDPOINT_HOSTS (REPRISE_SERVE_HOSTS), and over plain http only to an address listed there with http.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

from ..core.errors import BadInput, EndpointError

KEYS = ("REPRISE_ENDPOINT_KEY", "OPENAI_API_KEY")  # the first that is set counts
HOSTS = "REPRISE_ENDPOINT_HOSTS"  # "host" (https only) or "http://host:port", with commas between
DEFAULT_HOSTS = "api.openai.com"


@dataclass(frozen=True)
class ServerKind:
    """The environment's variables for the key and for the hosts that may get it, and a usual address.

    `header` is the variable with the name of the header that carries the key; without one, or without a name
    in it, the key is a bearer token.
    """

    keys: tuple[str, ...]
    hosts: str
    default_hosts: str
    example: str
    header: str = ""


CHAT = ServerKind(KEYS, HOSTS, DEFAULT_HOSTS, "http://127.0.0.1:11434/v1")
REWARDS = ServerKind(("REPRISE_SERVE_KEY",), "REPRISE_SERVE_HOSTS", "", "http://127.0.0.1:8009")
COMFYUI = ServerKind(
    ("REPRISE_COMFYUI_TOKEN",),
    "REPRISE_COMFYUI_HOSTS",
    "",
    "http://127.0.0.1:8188",
    "REPRISE_COMFYUI_HEADER",
)


def check_url(url: str, kind: ServerKind = CHAT) -> str:
    """The address without a path that people paste with it. Raises BadInput for an invalid one."""
    text = url.strip().rstrip("/").removesuffix("/chat/completions")
    return check_address(text, kind.example, f"; put a key into the environment as {kind.keys[0]}")


def check_address(text: str, example: str, advice: str = "") -> str:
    """An http address without a slash at its end. Raises BadInput for an invalid one; `advice` ends the
    message about one with a user, a password, a query or a fragment."""
    import httpx

    form, text = f"expected an address such as {example}", text.strip().rstrip("/")
    # A text that may hold a password or a key is not quoted.
    got = "" if "@" in text or "?" in text else f", got {text[:100]!r}"
    try:
        parsed = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as error:  # half letters, names that are no host's
        raise BadInput(f"{form}{got}") from error
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise BadInput(f"{form}, without a user, a password, a query or a fragment{advice}")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadInput(f"{form}{got}")
    return text


def is_local(host: str) -> bool:
    """Whether `host` is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def find_key(url: str, kind: ServerKind = CHAT) -> tuple[str | None, str]:
    """(the key for `url`, the variable it is in), or (None, what to do where the server wants one).

    Raises EndpointError for a key that no header can carry, without showing it.
    """
    import httpx

    name = next((name for name in kind.keys if os.environ.get(name, "").strip()), None)
    if name is None:
        return None, f"set {kind.keys[0]} in the environment and start again"
    address = httpx.URL(url)
    host, secure = address.host, address.scheme == "https"
    place = f"{address.scheme}://{host}" + (f":{address.port}" if address.port else "")
    accepted = {place, host} if secure else {place}
    hosts = os.environ.get(kind.hosts, kind.default_hosts).lower().split(",")
    named = {entry.strip().rstrip("/") for entry in hosts}
    if not is_local(host) and not accepted & named:
        return None, (
            f"the key in {name} was not sent, because {kind.hosts} does not name this address; if you trust "
            f"it, set {kind.hosts}={host if secure else place} and start again"
        )
    key = os.environ[name].strip()
    if not sendable(key):
        raise EndpointError(f"{name} holds characters that no key has; set it again and start again")
    return key, name


def key_header(kind: ServerKind) -> str | None:
    """The name of the header that carries the key; None for a bearer token. Raises BadInput."""
    name = os.environ.get(kind.header, "").strip() if kind.header else ""
    if name and not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise BadInput(f"{kind.header} is no header's name; set it to one such as X-Api-Key")
    return name or None


def sendable(key: str) -> bool:
    """Whether a header can carry the key."""
    return key.isascii() and key.isprintable() and " " not in key
