"""A client for OpenAI-compatible chat completions: Ollama, llama.cpp, vLLM, LM Studio, hosted services.

The key (`credentials.py`) is read when a request is sent, and stored and shown nowhere. The requests of a
call run in a thread of their own (`background.py`), so that the caller can stop within 0.1 s.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import FEW, AnswerRefused, BadInput, EndpointError, Interrupted
from .background import run_in_thread
from .credentials import check_url, find_key
from .http import FaultKind, HttpAnswer, HttpClient, HttpFault

MODELS_SECONDS = 10.0  # to list a server's models, for the message about one that is not there
REFUSES_ONE_REQUEST = (400, 413, 422)  # the request is at fault, not the server
V1 = "is it an OpenAI-compatible address? it usually ends in /v1"
_UNKNOWN_SETTING = re.compile(
    "un(known|supported|recogni[sz]ed|expected)|not (support|permitted|allowed)", re.I
)


@dataclass(frozen=True)
class ChatRequest:
    """One chat request. A message's content is a text or a list of parts, images as data URLs among them.

    `options` go into the request as they are: temperature, seed, max_tokens, logprobs, …
    """

    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChatReply:
    """A text, whether the limit of tokens cut it off, and the whole choice as the server sent it."""

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
        """`timeout`: seconds for one whole answer. `retries`: after lost connections, 429 and 5xx.

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
        requests: Sequence[ChatRequest],
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[ChatReply]:
        """The replies in the order of `requests`; the first that fails ends the others.

        `should_stop` and `progress(done, all)` are called in the caller's thread and may raise.
        Raises EndpointError, and Interrupted when `should_stop` returns True.
        """
        replies: dict[int, ChatReply] = {}

        def receive(number: int, reply: ChatReply | AnswerRefused) -> None:
            if isinstance(reply, AnswerRefused):
                raise reply
            replies[number] = reply
            if progress is not None:
                progress(len(replies), len(requests))

        self.complete_each(requests, receive, should_stop)
        return [replies[number] for number in range(len(requests))]

    def complete_each(
        self,
        requests: Sequence[ChatRequest],
        receive: Callable[[int, ChatReply | AnswerRefused], None],
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Call `receive(number of the request, reply)` as the replies come, in the caller's thread.

        Replies that came before a failure or a stop are handed over, too; on Ctrl-C one of them perhaps
        twice. A request that is refused by itself ends no others. Raises as `complete`.
        """
        call = _Call(self, requests)

        def hand_over() -> None:
            while call.replies:
                receive(*call.replies[0])
                call.replies.popleft()

        def tick() -> None:
            hand_over()
            if should_stop is not None and should_stop():
                raise Interrupted(f"stopped while {self.url} was answering")

        try:
            run_in_thread(call.run(), tick)
        except (KeyboardInterrupt, Interrupted):
            hand_over()
            raise


class _Call:
    """The requests of one `complete_each`: one client, one key, and the settings that the server refuses."""

    def __init__(self, endpoint: Endpoint, requests: Sequence[ChatRequest]):
        self.endpoint, self.requests = endpoint, requests
        self.replies: deque[tuple[int, ChatReply | AnswerRefused]] = deque()
        self.key, self.key_note = find_key(endpoint.url)
        self.refused_settings: set[str] = set()

    async def run(self) -> None:
        endpoint = self.endpoint
        slots = asyncio.Semaphore(endpoint.concurrency)
        async with HttpClient(
            endpoint.url,
            timeout=endpoint.timeout,
            max_bytes=endpoint.max_bytes,
            retries=endpoint.retries,
            key=self.key,
        ) as http:

            async def answer(number: int, request: ChatRequest) -> None:
                async with slots:
                    try:
                        self.replies.append((number, await self.ask(http, request)))
                    except AnswerRefused as refused:
                        self.replies.append((number, refused))

            tasks = [asyncio.create_task(answer(number, one)) for number, one in enumerate(self.requests)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, http: HttpClient, request: ChatRequest) -> ChatReply:
        while True:
            body = self.body(request)
            try:
                answer = await http.request("POST", "chat/completions", json=body)
            except HttpFault as fault:
                raise self.fault_error(fault) from fault
            if answer.status == 200:
                return self.read(http, answer)
            if answer.status == 404:
                raise await self.not_found(http, answer)
            if answer.status not in (400, 422) or not self.leave_out(answer, body):
                raise self.status_error(http, answer)

    def body(self, request: ChatRequest) -> dict[str, Any]:
        options = {key: value for key, value in request.options.items() if key not in self.refused_settings}
        limit, refused = request.options.get("max_tokens"), self.refused_settings
        if limit and "max_tokens" in refused and "max_completion_tokens" not in refused:
            options["max_completion_tokens"] = limit
        messages = [dict(message) for message in request.messages]
        return {"model": self.endpoint.model, "messages": messages, "stream": False, **options}

    def leave_out(self, answer: HttpAnswer, body: Mapping[str, Any]) -> bool:
        """Whether the server refuses settings by name; later requests leave them out.

        Hosted reasoning models take no temperature, and want max_completion_tokens for max_tokens; some
        services know no seed.
        """
        settings = {*body} - {"model", "messages", "stream"}
        error = answer.json.get("error")
        named = {str(error.get("param"))} & settings if isinstance(error, dict) else set()
        if not named and _UNKNOWN_SETTING.search(answer.message):
            named = {name for name in settings if re.search(rf"\b{name}\b", answer.message)}
        self.refused_settings |= named
        return bool(named)

    def read(self, http: HttpClient, answer: HttpAnswer) -> ChatReply:
        """The text of an answer with status 200."""
        url, body = self.endpoint.url, answer.body
        if not body.lstrip().startswith(b"{"):
            raise EndpointError(f"expected JSON from {url}, got {http.quote(body)}; {V1}")
        try:
            choice = answer.json["choices"][0]
            text = choice["message"]["content"] or ""
            if isinstance(text, list):  # parts, as some servers send them
                text = "".join(part.get("text") or "" for part in text)
            cut = choice.get("finish_reason") == "length"
            if not isinstance(text, str):
                raise TypeError
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EndpointError(
                f"expected choices[0].message.content from {url}, got {http.quote(body)}; take a chat model "
                "and an address that is OpenAI-compatible"
            ) from error
        if not text.strip() and not cut:
            raise AnswerRefused(
                f"{url} answered with an empty text; run again, or take another model than "
                f"{self.endpoint.model!r}"
            )
        return ChatReply(text.encode("utf-8", "replace").decode(), cut, choice)  # JSON can hold half a letter

    def fault_error(self, fault: HttpFault) -> EndpointError:
        advice = {
            FaultKind.UNREACHABLE: "start its server, or correct the address",
            FaultKind.BROKEN_OFF: "its log may say why",
            FaultKind.TOO_SLOW: f"raise the timeout, or take a smaller model than {self.endpoint.model!r}",
            FaultKind.TOO_LARGE: V1,
        }
        return EndpointError(f"{fault.describe(self.endpoint.url)}; {advice[fault.kind]}")

    def status_error(self, http: HttpClient, answer: HttpAnswer) -> EndpointError:
        """The error for a status that is not 200, with the server's own words."""
        url, status = self.endpoint.url, answer.status
        reason = f"({status}: {http.quote(answer.message)})"
        if status in (401, 403):
            if self.key is None:
                return EndpointError(f"{url} wants a key {reason}; {self.key_note}")
            return EndpointError(
                f"{url} refused the key {reason}; correct {self.key_note} in the environment and start again"
            )
        if status == 429:
            return EndpointError(f"{url} takes no more requests {reason}; wait, or ask for fewer variants")
        if status >= 500 or status == 408:
            return EndpointError(f"{url} failed {reason}; its log says why, or try again")
        if 300 <= status < 400:
            address = http.quote(answer.headers.get("location", "?"))
            return EndpointError(f"{url} has moved to {address}; give that address if you trust it")
        kind = AnswerRefused if status in REFUSES_ONE_REQUEST else EndpointError
        return kind(f"{url} refused the request {reason}; change the settings, or take another model")

    async def not_found(self, http: HttpClient, answer: HttpAnswer) -> EndpointError:
        """404 means an unknown model or a wrong address: the list of models tells which."""
        url, model = self.endpoint.url, self.endpoint.model
        reason = f"(404: {http.quote(answer.message)})"
        names = await self.model_names(http)
        if not names:
            return EndpointError(
                f"{url} knows no model {model!r} or is no OpenAI-compatible address {reason}; an address "
                "usually ends in /v1"
            )
        if model in names:
            return EndpointError(f"{url} does not answer as {model!r} {reason}; take another model")
        near = difflib.get_close_matches(model, names, n=1, cutoff=0.5)
        hint = f"did you mean {http.quote(near[0])}? " if near else ""
        more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
        return EndpointError(
            f"{url} knows no model {model!r}; {hint}it has {', '.join(map(http.quote, names[:FEW]))}{more}"
        )

    async def model_names(self, http: HttpClient) -> list[str]:
        """The models that the server lists, none where it lists none."""
        try:
            listed = await http.send("GET", "models", timeout=min(MODELS_SECONDS, self.endpoint.timeout))
            return sorted(str(entry["id"]) for entry in listed.json["data"]) if listed.status == 200 else []
        except (HttpFault, KeyError, TypeError):
            return []
