"""The one HTTP client: how long it waits, when it tries again, which proxy and certificates it uses.

A response of any status is an `HttpAnswer`. What keeps one from coming is an `HttpFault`, which the callers
(chat endpoints, reward servers, ComfyUI servers) turn into their own errors.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any

from ... import __version__
from ..core.errors import plain
from .background import run_in_thread
from .credentials import is_local

if TYPE_CHECKING:
    import ssl

CONNECT_SECONDS = 10.0  # until a server takes the connection
FIRST_RETRY_SECONDS = 0.5  # wait before the first retry; it doubles with each one
LONGEST_RETRY_SECONDS = 20.0  # a server that asks for a longer wait is not tried again
RETRIED_STATUSES = (408, 429, 500, 502, 503, 504, 529)
QUOTED_CHARACTERS = 200  # of a server's own words in a message
USER_AGENT = f"reprise/{__version__}"


class FaultKind(Enum):
    """Why there is no answer. A message says it of a server, `detail` is a reason, seconds or bytes."""

    UNREACHABLE = "cannot reach {server}{tries} ({detail})"
    BROKEN_OFF = "{server} broke off{tries} ({detail})"
    TOO_SLOW = "{server} did not answer within {detail} s"
    TOO_LARGE = "{server} answered with more than {detail} bytes"


class HttpFault(Exception):
    """No answer came. `may_pass`: a later try may succeed; `tries`: how many there were."""

    def __init__(self, kind: FaultKind, detail: str, may_pass: bool = False):
        super().__init__(kind, detail)
        self.kind, self.detail, self.may_pass, self.tries = kind, detail, may_pass, 1

    def describe(self, server: str) -> str:
        """The start of an error message that calls the server `server`."""
        return self.kind.value.format(server=server, detail=self.detail, tries=count_tries(self.tries))


@dataclass(frozen=True)
class HttpAnswer:
    """A whole response. `headers` find a name in any case; `tries`: how many requests it took."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    tries: int = 1

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object of the body, empty where it is none. A list of one object counts as that object:
        some services wrap errors so."""
        return parse_object(self.body)

    @property
    def message(self) -> str:
        """What the server says is wrong: in one of the usual places, or else the whole body."""
        error = self.json.get("error")
        nested = error.get("message") if isinstance(error, dict) else error
        for text in (nested, self.json.get("message"), self.json.get("detail")):
            if isinstance(text, str) and text.strip():
                return text
        return self.body.decode("utf-8", "replace")

    @property
    def retry_after(self) -> float:
        """The header Retry-After in seconds; 0 where it is not a number of seconds."""
        try:
            return max(0.0, float(self.headers.get("retry-after", "")))
        except ValueError:
            return 0.0


@dataclass
class HttpClient:
    """Requests to the server at `url`, within one event loop; close it, or use it as a context manager.

    `timeout`: seconds for one whole answer. `max_bytes`: of an answer's body. `retries`: how often `request`
    tries again. `key` is sent as a bearer token, or in the header `key_header`, and quotes of the server's
    words leave it out.
    """

    url: str
    timeout: float
    max_bytes: int
    retries: int = 0
    key: str | None = field(default=None, repr=False)
    key_header: str | None = None

    def __post_init__(self) -> None:
        import httpx

        headers = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT}  # max_bytes counts what is sent
        headers.update(self.key_headers)
        plain_and_local = not uses_proxy(self.url) and not self.url.startswith("https:")
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(self.timeout, connect=CONNECT_SECONDS),
            trust_env=uses_proxy(self.url),
            verify=False if plain_and_local else tls_context(),
        )

    @property
    def key_headers(self) -> dict[str, str]:
        """The header that carries the key, where there is one."""
        if not self.key:
            return {}
        return {self.key_header: self.key} if self.key_header else {"Authorization": f"Bearer {self.key}"}

    async def __aenter__(self) -> HttpClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.aclose()

    async def request(self, method: str, path: str, **options: Any) -> HttpAnswer:
        """The answer to a request, tried again after lost connections and `RETRIED_STATUSES`.

        Waits double, and are as long as the server's Retry-After where that is longer. `options` are those of
        `send`. The last answer is returned whatever its status. Raises HttpFault.
        """
        tries = 1
        while True:
            wait = min(FIRST_RETRY_SECONDS * 2 ** (tries - 1), LONGEST_RETRY_SECONDS)
            try:
                answer = replace(await self.send(method, path, **options), tries=tries)
            except HttpFault as fault:
                fault.tries = tries
                if not fault.may_pass or tries > self.retries:
                    raise
            else:
                wait = max(wait, answer.retry_after)
                final = tries > self.retries or wait > LONGEST_RETRY_SECONDS
                if answer.status not in RETRIED_STATUSES or final:
                    return answer
            await asyncio.sleep(wait)
            tries += 1

    async def send(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes]] | None = None,
        timeout: float | None = None,
    ) -> HttpAnswer:
        """The answer to one request, not tried again. `content` is JSON already encoded; `files` are sent as
        a form, field -> (file's name, content), with the fields of `data`. Raises HttpFault."""
        import httpx

        seconds = self.timeout if timeout is None else timeout
        headers = None if content is None else {"Content-Type": "application/json"}

        async def exchange() -> HttpAnswer:
            body = bytearray()
            async with self._client.stream(
                method,
                f"{self.url}/{path}",
                json=json,
                content=content,
                params=params,
                data=data,
                files=files,
                headers=headers,
            ) as response:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > self.max_bytes:
                        raise HttpFault(FaultKind.TOO_LARGE, f"{self.max_bytes:,}")
            return HttpAnswer(response.status_code, response.headers, bytes(body))

        try:
            return await asyncio.wait_for(exchange(), seconds)
        except httpx.ConnectTimeout as error:
            why = f"no connection within {CONNECT_SECONDS:g} s"
            raise HttpFault(FaultKind.UNREACHABLE, why) from error
        except (httpx.TimeoutException, asyncio.TimeoutError) as error:
            raise HttpFault(FaultKind.TOO_SLOW, f"{seconds:g}") from error
        except httpx.ConnectError as error:
            raise HttpFault(FaultKind.UNREACHABLE, self._why(error), may_pass=True) from error
        except httpx.HTTPError as error:
            raise HttpFault(FaultKind.BROKEN_OFF, self._why(error), may_pass=True) from error

    def _why(self, error: Exception) -> str:
        return self.quote(str(error) or type(error).__name__)

    def quote(self, text: str | bytes) -> str:
        """A server's words, without the key that it may have sent back; see `quote`."""
        return quote(text, self.key)


def fetch(url: str, path: str, *, params: Mapping[str, str] | None = None, **limits: Any) -> HttpAnswer:
    """The answer to one GET; `limits` are those of `HttpClient`. Raises HttpFault."""

    async def get() -> HttpAnswer:
        async with HttpClient(url, **limits) as client:
            return await client.request("GET", path, params=params)

    return run_in_thread(get())


def uses_proxy(url: str) -> bool:
    """Whether the environment's proxy counts: it cannot reach this machine's own servers."""
    import httpx

    return not is_local(httpx.URL(url).host)


@cache
def tls_context() -> ssl.SSLContext:
    """certifi's certificates, or those that SSL_CERT_FILE or SSL_CERT_DIR names. Reading them takes 0.1 s."""
    import httpx

    return httpx.create_ssl_context()


def websocket_options(url: str) -> dict[str, Any]:
    """For `websockets.connect`: the time, proxy and certificates that HTTP requests to `url` have."""
    return {
        "open_timeout": CONNECT_SECONDS,
        "proxy": True if uses_proxy(url) else None,
        "ssl": tls_context() if url.startswith("https:") else None,
    }


def quote(text: str | bytes, key: str | None = None) -> str:
    """A server's words in quotation marks on one line, short, without `key`."""
    text = text[: 2**16]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if key:
        text = text.replace(key, "(the key)")
    return repr(plain(text, QUOTED_CHARACTERS))


def count_tries(tries: int) -> str:
    """ " after N tries", where there was more than one."""
    return f" after {tries} tries" if tries > 1 else ""


def parse_object(text: str | bytes) -> dict[str, Any]:
    """See `HttpAnswer.json`."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if isinstance(parsed, list) and len(parsed) == 1:
        parsed = parsed[0]
    return parsed if isinstance(parsed, dict) else {}
