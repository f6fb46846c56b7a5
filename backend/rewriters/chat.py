"""Any chat model behind an OpenAI-compatible endpoint, zero-shot, with RePrompt's messages and parser.

Equal calls send equal requests, seeds included. Whether equal requests get equal answers depends on the
server: with Ollama and llama.cpp they do, with hosted services mostly not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

from ..core.errors import AnswerRefused, BadInput
from ..core.types import Rewrite, RewriterCapabilities
from ..net.chat_client import ChatReply, ChatRequest, Endpoint
from .prompting import SYSTEM, build_messages
from .rows import RewriteRow, all_rows, group_by_prompt, read_answer, row_seed

SEEDS = 2**31  # servers parse seeds as signed 32-bit integers, or lose digits above 2**53


class ChatRewriter:
    """The first variant is requested at temperature 0, the others at `temperature`, each with its own seed.

    A setting that the server refuses by name is left out; hosted reasoning models take no temperature.
    """

    name = "chat"
    capabilities = RewriterCapabilities(elsewhere=True)

    def __init__(
        self,
        url: str,
        model: str,
        *,
        temperature: float = 0.9,
        max_new_tokens: int = 2048,
        timeout: float = 120.0,
        system: str = SYSTEM,
    ):
        """`url`: such as http://127.0.0.1:11434/v1. `timeout`: seconds for one answer.

        Sends nothing yet. Raises BadInput.
        """
        self.endpoint = Endpoint(url, model, timeout=timeout)
        if temperature <= 0 or max_new_tokens < 1:
            raise BadInput(
                f"expected temperature > 0 and max_new_tokens >= 1, got {temperature}, {max_new_tokens}"
            )
        self.temperature, self.max_new_tokens, self.system = temperature, max_new_tokens, system

    def rewrite(
        self,
        prompts: Sequence[str],
        variants: int = 1,
        seed: int = 0,
        critiques: Sequence[str | None] | None = None,
        *,
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Rewrite]]:
        """`variants` rewrites of each prompt; see `interfaces.Rewriter`.

        `should_stop` is called ten times a second; if it returns True, Interrupted is raised. `progress(done,
        rows)` is called as answers arrive. Raises BadInput as RePrompt does, and EndpointError if the server
        fails: the user's own prompt does not silently take the rewrite's place.
        """
        rows = all_rows(prompts, variants, seed, critiques)
        requests = [self._request(row, seed) for row in rows]
        replies = self.endpoint.complete(requests, should_stop, progress)
        return group_by_prompt([self._to_rewrite(row, reply) for row, reply in zip(rows, replies)], variants)

    def rewrite_rows(
        self,
        rows: Sequence[RewriteRow],
        seed: int,
        on_rewrite: Callable[[int, Rewrite | AnswerRefused], None],
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """See `RowRewriter`. Raises EndpointError for failures that are not due to a single row."""

        def on_reply(number: int, reply: ChatReply | AnswerRefused) -> None:
            refused = isinstance(reply, AnswerRefused)
            on_rewrite(number, reply if refused else self._to_rewrite(rows[number], reply))

        self.endpoint.complete_each([self._request(row, seed) for row in rows], on_reply, should_stop)

    def _request(self, row: RewriteRow, seed: int) -> ChatRequest:
        return ChatRequest(
            build_messages(row.prompt, row.critique, self.system),
            {
                "temperature": self.temperature if row.variant else 0,
                "seed": row_seed(seed, row.prompt, row.critique, row.variant) % SEEDS,
                "max_tokens": self.max_new_tokens,
            },
        )

    def _to_rewrite(self, row: RewriteRow, reply: ChatReply) -> Rewrite:
        limit = f"{self.max_new_tokens} tokens"
        return read_answer(reply.text, row.prompt, self.name, limit if reply.cut else "")

    @property
    def fingerprint(self) -> str:
        """Changes with address, model name and settings. Other weights under the same name go unnoticed."""
        settings = [self.system, self.max_new_tokens, self.temperature]
        identity = json.dumps([self.endpoint.url, self.endpoint.model, settings])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]
