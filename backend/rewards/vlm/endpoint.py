"""A VLM behind an OpenAI-compatible chat endpoint that answers questions about pictures.

P(yes) comes from the `top_logprobs` of the answering token, where the server sends them (vLLM, llama.cpp,
OpenAI); else the answer's word counts, and a score is 0 or 1. An answer without yes or no is an error.
"""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...core.errors import EndpointError, first_line
from ...net.chat_client import ChatReply, ChatRequest, Endpoint
from .local import VlmAnswer
from .questions import read_yes_no

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

TOP_LOGPROBS = 20  # what OpenAI and vLLM give at most
MAX_TOKENS = 512  # of an answer of yes or no: most models stop after one, some explain or think first


class EndpointVLM:
    """MODEL at URL, at temperature 0. Whether equal requests get equal answers depends on the server."""

    model = None  # no weights on this machine

    def __init__(self, url: str, model: str, *, timeout: float = 120.0):
        """Nothing is sent yet. Raises BadInput for an address or a name that cannot be one."""
        self.endpoint = Endpoint(url, model, timeout=timeout)
        self.name, self._warned = self.endpoint.model, False
        self.fingerprint = f"{self.name}@{self.endpoint.url}"

    def yes_probabilities(self, pictures: Sequence[Image], questions: Sequence[str]) -> list[float]:
        """P(yes) to each question about its picture, 0..1. Raises EndpointError."""
        logprobs = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        requests = [_request(q, p, MAX_TOKENS, **logprobs) for p, q in zip(pictures, questions, strict=True)]
        return [self._probability(reply) for reply in self.endpoint.complete(requests)]

    def generate(
        self, questions: Sequence[str], pictures: Sequence[Image] | None, limit: int
    ) -> list[VlmAnswer]:
        """An answer in words of `limit` tokens at most to each question. Raises EndpointError."""
        requests = [
            _request(question, picture, limit)
            for question, picture in zip(questions, pictures or [None] * len(questions), strict=True)
        ]
        return [VlmAnswer(reply.text, reply.cut) for reply in self.endpoint.complete(requests)]

    def _probability(self, reply: ChatReply) -> float:
        answer = read_yes_no(reply.text)
        if answer is None:
            cut = f", cut off after {MAX_TOKENS} tokens" if reply.cut else ""
            raise EndpointError(
                f"expected yes or no from {self.name!r} at {self.endpoint.url}, got "
                f"{_short(reply.text)}{cut}; take another model"
            )
        try:
            top = _top_logprobs(reply.choice, "yes" if answer else "no")
            if top is None:
                self._warn_once()
                return float(answer)
            yes, no = (sum(p for text, p in top if _word(text) == word) for word in ("yes", "no"))
            return yes / (yes + no)
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise EndpointError(
                f"{self.endpoint.url} sent logprobs that cannot be read ({why}); take another server"
            ) from error

    def _warn_once(self) -> None:
        if not self._warned:
            log.warning(
                "%s sends no logprobs for the answers of %r: scores are 0 or 1, nothing between",
                self.endpoint.url,
                self.name,
            )
            self._warned = True


def _request(question: str, picture: Image | None, limit: int, **options: Any) -> ChatRequest:
    content: list[dict[str, Any]] = [] if picture is None else [_image_part(picture)]
    content.append({"type": "text", "text": question})
    settings = {"temperature": 0, "seed": 0, "max_tokens": limit, **options}
    return ChatRequest([{"role": "user", "content": content}], settings)


def _image_part(picture: Image) -> dict[str, Any]:
    """A picture as a part of a message: PNG in a data URL."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _top_logprobs(choice: Mapping[str, Any], answer: str) -> list[tuple[str, float]] | None:
    """(token, probability) of the likeliest tokens at the place of `answer`; None where the server sent no
    such list, or where the answer is not one token."""
    tokens = (choice.get("logprobs") or {}).get("content") or []
    texts = [str(token["token"]) for token in tokens]
    after_thinking = max((i + 1 for i, text in enumerate(texts) if "</think>" in text), default=0)
    # Marks and blanks may come before it: "**Yes**".
    first = next((i for i in range(after_thinking, len(texts)) if _word(texts[i])), None)
    if first is None or _word(texts[first]) != answer or not tokens[first].get("top_logprobs"):
        return None
    return [(str(one["token"]), _to_probability(one["logprob"])) for one in tokens[first]["top_logprobs"]]


def _to_probability(logprob: float) -> float:
    probability = math.exp(logprob)
    if not 0 <= probability <= 1.001:  # roundings aside
        raise ValueError(f"a logprob of {logprob}")
    return probability


def _word(token: str) -> str:
    return "".join(letter for letter in token if letter.isalnum()).casefold()


def _short(text: str, most: int = 80) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= most else line[: most - 1] + "…")
