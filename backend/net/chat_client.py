"""A client for OpenAI-compatible chat completions: Ollama, llama.cpp, vLLM, LM Studio, hosted services.

The key (`keys.py`) is read when a request is sent, and kept and shown nowhere.

The requests of a call run in an event loop of their own in a thread of their own: the caller, who may be
inside a running loop (ComfyUI's nodes are), asks `should_stop` ten times a second and leaves at once.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ..core.errors import FEW, AnswerRefused, BadInput, EndpointError, Interrupted, plain
from .credentials import check_url, find_key, is_local

if TYPE_CHECKING:
    import httpx

POLL = 0.1  # seconds between two looks at `should_stop`
CONNECT = 10.0  # seconds at most until a server takes the connection
BACKOFF, LONGEST_WAIT = 0.5, 20.0  # seconds before the first retry, doubled for each; and the most
RETRIED = (408, 429, 500, 502, 503, 504, 529)
OF_ONE = (400, 413, 422)  # what is asked is at fault, not the server
SHOWN = 200  # characters of a server's own words in a message
T = TypeVar("T")
_REFUSES = re.compile("un(known|supported|recogni[sz]ed|expected)|not (support|permitted|allowed)", re.I)


@dataclass(frozen=True)
class ChatRequest:
    """One chat request. A message's content is a text or a list of parts, images as data URLs among them.

    `options` go into the request as they are: temperature, seed, max_tokens, logprobs, …
    """

    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChatReply:
    """A text, whether it was cut off by the limit of tokens, and the whole choice as the server sent it."""

    text: str
    cut: bool
    choice: dict[str, Any]


class Endpoint:
    """A model behind an address such as `http://127.0.0.1:11434/v1`."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout: float = 120.0,
        retries: int = 2,
        concurrency: int = 4,
        max_bytes: int = 4 * 2**20,
    ):
        """`timeout`: seconds for one whole answer. `retries` are for lost connections, 429 and 5xx.

        Raises BadInput for an address or a model's name that cannot be one.
        """
        self.url, self.model = check_url(url), model.strip()
        if not self.model:
            raise BadInput(f"the model's name is empty; give one that {self.url} serves")
        if timeout <= 0 or retries < 0 or concurrency < 1 or max_bytes < 1:
            raise BadInput(
                "expected timeout > 0, retries >= 0, concurrency >= 1 and max_bytes >= 1, got "
                f"{timeout}, {retries}, {concurrency}, {max_bytes}"
            )
        self.timeout, self.retries = timeout, retries
        self.concurrency, self.max_bytes = concurrency, max_bytes

    def complete(
        self,
        asks: Sequence[ChatRequest],
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[ChatReply]:
        """Answers in the order of `asks`; the first that fails ends the others.

        `should_stop` and `progress(done, all)` are called in the caller's thread and may raise.
        Raises EndpointError, and Interrupted where `should_stop` says so.
        """
        found: dict[int, ChatReply] = {}

        def told(number: int, answer: ChatReply | AnswerRefused) -> None:
            if isinstance(answer, AnswerRefused):
                raise answer
            found[number] = answer
            if progress is not None:
                progress(len(found), len(asks))

        self.answers(asks, told, should_stop)
        return [found[number] for number in range(len(asks))]

    def answers(
        self,
        asks: Sequence[ChatRequest],
        told: Callable[[int, ChatReply | AnswerRefused], None],
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Hand each answer to `told(its number, answer)` as it comes, in the caller's thread.

        What has come is handed over also when the call fails or is stopped, one answer perhaps twice on
        Ctrl-C. A request that is refused by itself ends no others. Raises as `complete`.
        """
        call, over = _Call(self, asks), False
        worker = Worker(call.run())

        def hand_over() -> None:
            while call.arrived:
                told(*call.arrived[0])
                call.arrived.popleft()

        worker.start()
        try:
            while not over:
                if should_stop is not None and should_stop():
                    raise Interrupted(f"stopped while {self.url} was answering")
                over = worker.wait(POLL)
                hand_over()
        except (KeyboardInterrupt, Interrupted):
            worker.cancel()
            hand_over()
            raise
        finally:
            worker.cancel()
        worker.result()


class Worker(threading.Thread, Generic[T]):
    """Runs a coroutine in an event loop of its own."""

    def __init__(self, work: Coroutine[Any, Any, T]):
        super().__init__(name="reprise-endpoint", daemon=True)
        self._work, self._ready, self._over = work, threading.Event(), threading.Event()
        self._found: T | None = None
        self._error: BaseException | None = None
        self._task: asyncio.Task | None = None

    def run(self) -> None:
        try:
            self._found = asyncio.run(self._main())
        except BaseException as error:  # handed to the caller's thread
            self._error = error
        finally:
            self._ready.set()
            self._over.set()

    def wait(self, seconds: float) -> bool:
        """Whether it is over, at most so much later. After a Ctrl-C in `join`, `is_alive` would be wrong."""
        return self._over.wait(seconds)

    async def _main(self) -> T:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._ready.set()
        return await self._work

    def cancel(self, patience: float = 1.0) -> None:
        """End what still runs: connections are closed, so that the server may stop working, too.

        `patience`: seconds that the coroutine gets for its leave.
        """
        self._ready.wait()
        if not self._over.is_set() and self._task is not None:
            try:
                self._loop.call_soon_threadsafe(self._task.cancel)
            except RuntimeError:  # the loop has ended meanwhile
                pass
        self.wait(patience)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return cast(T, self._found)


class _Call:
    """The requests of one `complete`: one client, one key, settings that the server has refused by name."""

    def __init__(self, endpoint: Endpoint, asks: Sequence[ChatRequest]):
        self.endpoint, self.asks = endpoint, asks
        self.arrived: deque[tuple[int, ChatReply | AnswerRefused]] = deque()
        self.key, self.key_note = find_key(endpoint.url)
        self.refused: set[str] = set()

    async def run(self) -> None:
        import httpx

        headers = {"Accept-Encoding": "identity"}  # the bound on sizes means what is sent
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        turn = asyncio.Semaphore(self.endpoint.concurrency)
        address = httpx.URL(self.endpoint.url)
        local = is_local(address.host)
        async with httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(self.endpoint.timeout, connect=CONNECT),
            trust_env=not local,  # a proxy of the environment cannot reach this machine's own servers
            verify=not local or address.scheme == "https",  # reading certificates for nothing takes .1 s
        ) as client:

            async def one(number: int, ask: ChatRequest) -> None:
                async with turn:
                    try:
                        self.arrived.append((number, await self.ask(client, ask)))
                    except AnswerRefused as refused:
                        self.arrived.append((number, refused))

            tasks = [asyncio.create_task(one(number, ask)) for number, ask in enumerate(self.asks)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, client: httpx.AsyncClient, ask: ChatRequest) -> ChatReply:
        import httpx

        tries = 0
        while True:
            sent = self.request(ask)
            wait = BACKOFF * 2**tries
            try:
                status, headers, body = await asyncio.wait_for(
                    self.send(client, "POST", "chat/completions", sent), self.endpoint.timeout
                )
            except httpx.ConnectTimeout as error:
                raise self.down(f"no connection within {CONNECT:g} s") from error
            except (asyncio.TimeoutError, httpx.TimeoutException) as error:
                raise EndpointError(
                    f"{self.endpoint.url} did not answer within {self.endpoint.timeout:g} s; raise the "
                    f"timeout, or take a smaller model than {self.endpoint.model!r}"
                ) from error
            except httpx.HTTPError as error:
                why = str(error) or type(error).__name__
                lost = EndpointError(
                    f"{self.endpoint.url} broke off ({self.quote(why)}); its log may say why"
                )
                fault = self.down(why) if isinstance(error, httpx.ConnectError) else lost
                fault.__cause__ = error
            else:
                if status == 200:
                    return self.read(body)
                if status in (400, 422) and self.leave_out(body, sent):
                    continue
                if status == 404:
                    raise await self.not_found(client, body)
                fault = self.failure(status, headers, body)
                if status not in RETRIED:
                    raise fault
                wait = max(wait, _seconds(headers.get("retry-after", "")))
            if tries == self.endpoint.retries or wait > LONGEST_WAIT:
                raise fault
            await asyncio.sleep(wait)
            tries += 1

    def request(self, ask: ChatRequest) -> dict[str, Any]:
        options = {key: value for key, value in ask.options.items() if key not in self.refused}
        limit = ask.options.get("max_tokens")
        if limit and "max_tokens" in self.refused and "max_completion_tokens" not in self.refused:
            options["max_completion_tokens"] = limit
        messages = [dict(message) for message in ask.messages]
        return {"model": self.endpoint.model, "messages": messages, "stream": False, **options}

    def leave_out(self, body: bytes, sent: Mapping[str, Any]) -> bool:
        """Whether the server refuses settings by name; they are left out from then on.

        Hosted reasoning models take no temperature, and want max_completion_tokens for max_tokens; some
        services know no seed.
        """
        settings = {*sent} - {"model", "messages", "stream"}
        error, said = _parsed(body).get("error"), _message(body)
        named = {str(error.get("param"))} & settings if isinstance(error, dict) else set()
        if not named and _REFUSES.search(said):
            named = {name for name in settings if re.search(rf"\b{name}\b", said)}
        self.refused |= named
        return bool(named)

    async def send(
        self, client: httpx.AsyncClient, method: str, path: str, content: Any = None
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of a response, whose size is bounded."""
        body = bytearray()
        async with client.stream(method, f"{self.endpoint.url}/{path}", json=content) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > self.endpoint.max_bytes:
                    raise EndpointError(
                        f"{self.endpoint.url} answered with more than {self.endpoint.max_bytes:,} bytes; is "
                        "it an OpenAI-compatible address? it usually ends in /v1"
                    )
        return response.status_code, response.headers, bytes(body)

    def read(self, body: bytes) -> ChatReply:
        """The text of a good response."""
        if not body.lstrip().startswith(b"{"):
            raise EndpointError(
                f"expected JSON from {self.endpoint.url}, got {self.quote(body)}; is it an OpenAI-compatible "
                "address? it usually ends in /v1"
            )
        try:
            choice = _parsed(body)["choices"][0]
            text = choice["message"]["content"] or ""
            if isinstance(text, list):  # parts, as some servers send them
                text = "".join(part.get("text") or "" for part in text)
            cut = choice.get("finish_reason") == "length"
            if not isinstance(text, str):
                raise TypeError
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EndpointError(
                f"expected choices[0].message.content from {self.endpoint.url}, got {self.quote(body)}; take "
                "a chat model and an address that is OpenAI-compatible"
            ) from error
        if not text.strip() and not cut:
            raise AnswerRefused(
                f"{self.endpoint.url} answered with an empty text; run again, or take another model than "
                f"{self.endpoint.model!r}"
            )
        return ChatReply(text.encode("utf-8", "replace").decode(), cut, choice)  # JSON can hold half a letter

    def down(self, why: str) -> EndpointError:
        return EndpointError(
            f"cannot reach {self.endpoint.url} ({self.quote(why)}); start its server, or correct the address"
        )

    def failure(self, status: int, headers: httpx.Headers, body: bytes) -> EndpointError:
        """What a response that is not 200 comes to, with the server's own words."""
        url, said = self.endpoint.url, f"({status}: {self.quote(_message(body))})"
        if status in (401, 403):
            if self.key is None:
                return EndpointError(f"{url} wants a key {said}; {self.key_note}")
            return EndpointError(
                f"{url} refused the key {said}; correct {self.key_note} in the environment and start again"
            )
        if status == 429:
            return EndpointError(f"{url} takes no more requests {said}; wait, or ask for fewer variants")
        if status >= 500 or status == 408:
            return EndpointError(f"{url} failed {said}; its log says why, or try again")
        if 300 <= status < 400:
            return EndpointError(
                f"{url} has moved to {self.quote(headers.get('location', '?'))}; give that "
                "address if you trust it"
            )
        kind = AnswerRefused if status in OF_ONE else EndpointError
        return kind(f"{url} refused the request {said}; change the settings, or take another model")

    async def not_found(self, client: httpx.AsyncClient, body: bytes) -> EndpointError:
        """404 is a model that is not there or an address that is none: the list of models tells."""
        import httpx

        url, model, names = self.endpoint.url, self.endpoint.model, []
        try:
            status, _, listed = await asyncio.wait_for(
                self.send(client, "GET", "models"), min(10.0, self.endpoint.timeout)
            )
            if status == 200:
                names = sorted(str(entry["id"]) for entry in _parsed(listed)["data"])
        except (httpx.HTTPError, asyncio.TimeoutError, EndpointError, KeyError, TypeError):
            pass
        if not names:
            return EndpointError(
                f"{url} knows no model {model!r} or is no OpenAI-compatible address (404: "
                f"{self.quote(_message(body))}); an address usually ends in /v1"
            )
        if model in names:
            return EndpointError(
                f"{url} does not answer as {model!r} (404: {self.quote(_message(body))}); take another model"
            )
        near = difflib.get_close_matches(model, names, n=1, cutoff=0.5)
        hint = f"did you mean {self.quote(near[0])}? " if near else ""
        more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
        return EndpointError(
            f"{url} knows no model {model!r}; {hint}it has "
            f"{', '.join(self.quote(name) for name in names[:FEW])}{more}"
        )

    def quote(self, said: str | bytes) -> str:
        """A server's words on one line, short, without the key that it may have sent back."""
        said = _text(said)
        if self.key:
            said = said.replace(self.key, "(the key)")
        return repr(plain(said, SHOWN))


def _parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of a response (in a list, as some wrap errors), empty where it is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    return found if isinstance(found, dict) else {}


def _text(said: str | bytes) -> str:
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else said


def _message(body: bytes) -> str:
    """What a server says is wrong, in one of the usual places, or else all that it says."""
    parsed = _parsed(body)
    error = parsed.get("error")
    for found in (
        error.get("message") if isinstance(error, dict) else error,
        parsed.get("message"),
        parsed.get("detail"),
    ):
        if isinstance(found, str) and found.strip():
            return found
    return _text(body)


def _seconds(text: str) -> float:
    """The header Retry-After, where it is a number of seconds."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0
