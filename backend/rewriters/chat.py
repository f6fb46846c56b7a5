"""Any chat model behind an OpenAI-compatible endpoint, zero-shot: the same messages and parser as RePrompt.

Equal calls send equal requests, seeds included. Whether equal requests get equal answers is the server's
affair: Ollama and llama.cpp hold it, hosted services mostly do not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

from ..core.errors import AnswerRefused, BadInput
from ..core.types import Rewrite
from ..net.chat_client import ChatReply, ChatRequest, Endpoint
from .prompting import SYSTEM, build_messages
from .rows import RewriteRow, all_rows, group_by_prompt, read_answer, row_seed

SEEDS = 2**31  # servers read seeds into 32 signed bits, or lose digits above 2**53


class ChatRewriter:
    """A single variant is asked for at temperature 0, several at `temperature`, each with its own seed.

    A setting that the server refuses by name (hosted reasoning models take no temperature) is left out.
    """

    name = "chat"
    remote = True  # `rewrite` waits for a server: nothing of this machine's GPU or weights is needed

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
        """`url` such as http://127.0.0.1:11434/v1; `timeout` in seconds for one answer.

        Nothing is sent yet. Raises BadInput.
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

        `should_stop` is asked ten times a second and ends the work with Interrupted; `progress(done,
        rows)` is told of answers. Raises BadInput as RePrompt does, and EndpointError: a server that
        fails is no reason to draw the user's plain prompt.
        """
        rows = all_rows(prompts, variants, seed, critiques)
        requests = [self._request(row, seed) for row in rows]
        replies = self.endpoint.complete(requests, should_stop, progress)
        return group_by_prompt([self._read(row, reply) for row, reply in zip(rows, replies)], variants)

    def ask(
        self,
        rows: Sequence[RewriteRow],
        seed: int,
        told: Callable[[int, Rewrite | AnswerRefused], None],
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """See `AsksRows`. Raises EndpointError for what is not the fault of one row."""

        def read(number: int, reply: ChatReply | AnswerRefused) -> None:
            refused = isinstance(reply, AnswerRefused)
            told(number, reply if refused else self._read(rows[number], reply))

        self.endpoint.complete_each([self._request(row, seed) for row in rows], read, should_stop)

    def _request(self, row: RewriteRow, seed: int) -> ChatRequest:
        return ChatRequest(
            build_messages(row.prompt, row.critique, self.system),
            {
                "temperature": self.temperature if row.variant else 0,
                "seed": row_seed(seed, row.prompt, row.critique, row.variant) % SEEDS,
                "max_tokens": self.max_new_tokens,
            },
        )

    def _read(self, row: RewriteRow, reply: ChatReply) -> Rewrite:
        limit = f"{self.max_new_tokens} tokens"
        return read_answer(reply.text, row.prompt, self.name, limit if reply.cut else "")

    @property
    def fingerprint(self) -> str:
        """Changes with address, name and settings; which weights the name stands for is not seen."""
        settings = [self.system, self.max_new_tokens, self.temperature]
        asked = json.dumps([self.endpoint.url, self.endpoint.model, settings])
        return hashlib.sha256(asked.encode()).hexdigest()[:16]
