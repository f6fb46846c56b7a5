"""Rewriters that were not trained to rewrite: a chat model behind an endpoint, or one that ComfyUI has
loaded.

`ClipRewriter` uses a CLIP object as the core's Generate Text does (`comfy_extras/nodes_textgen.py`):
tokenize, generate, decode, with the tokenizer's own chat template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from comfy_api.latest import io

from ..backend.core.errors import BadInput, Interrupted, Unsupported
from ..backend.core.types import Rewrite, RewriterCapabilities
from ..backend.rewriters.prompting import SYSTEM, build_messages
from ..backend.rewriters.rows import check_request, read_answer, row_seed
from . import sockets
from .loaders import LOADERS

# Tokens that open or close a turn in some tokenizer, and the core's syntax for textual-inversion embeddings.
_CONTROL = re.compile(r"<\|[^<>]*>|<[^<>|]*\|>|<(?:start|end)_of_turn>|\bembedding:", re.IGNORECASE)


class EndpointRewriter(io.ComfyNode):
    """A chat model on an OpenAI-compatible server."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseEndpointRewriter",
            display_name="Endpoint Rewriter",
            category=LOADERS,
            description="A chat model behind an OpenAI-compatible address (Ollama, llama.cpp, vLLM, LM "
            "Studio or a hosted service) rewrites prompts. A key is read from the environment "
            "variable REPRISE_ENDPOINT_KEY, else OPENAI_API_KEY, and never saved with the "
            "workflow.",
            search_aliases=["LLM", "OpenAI", "Ollama", "llama.cpp", "vLLM", "LM Studio", "chat model", "API"],
            inputs=[
                io.String.Input(
                    "url",
                    default="http://127.0.0.1:11434/v1",
                    tooltip="The server's address, which usually ends in /v1. Ollama: "
                    "http://127.0.0.1:11434/v1. Never write a key here.",
                ),
                io.String.Input(
                    "model",
                    default="",
                    tooltip="The model's name as the server knows it, for example qwen3:8b.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.9,
                    min=0.05,
                    max=2.0,
                    step=0.05,
                    tooltip="How much several variants differ. The first is written at temperature 0.",
                ),
                io.Int.Input(
                    "max_tokens",
                    default=2048,
                    min=16,
                    max=32768,
                    advanced=True,
                    tooltip="The longest answer in tokens. Models that reason first need more.",
                ),
                io.Int.Input(
                    "timeout",
                    default=120,
                    min=1,
                    max=3600,
                    advanced=True,
                    tooltip="Seconds to wait for one answer.",
                ),
            ],
            outputs=[
                sockets.Rewriter.Output("rewriter", tooltip="For RePrompt Rewriter and Reflection Loop."),
            ],
        )

    @classmethod
    def validate_inputs(cls, url=None, model=None) -> bool | str:
        """True, or the error for a wrong address or model. Other branches of the graph still run."""
        from ..backend.net.chat_client import Endpoint

        if url is None or model is None:  # linked from other nodes, not known yet
            return True
        try:
            Endpoint(url, model)
        except BadInput as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, url: str, model: str, temperature: float, max_tokens: int, timeout: int
    ) -> io.NodeOutput:
        from ..backend.rewriters.chat import ChatRewriter

        return io.NodeOutput(
            ChatRewriter(url, model, temperature=temperature, max_new_tokens=max_tokens, timeout=timeout)
        )


class RewriterFromClip(io.ComfyNode):
    """A language model that the graph has already loaded as its text encoder."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseClipRewriter",
            display_name="Rewriter from CLIP",
            category=LOADERS,
            description="Rewrites prompts with a text encoder that is a whole language model, such as "
            "Z-Image's or FLUX.2 klein's Qwen3 or LTX-2's Gemma: no further model to "
            "download or to hold in memory.",
            search_aliases=["LLM", "text encoder", "Generate Text", "qwen", "gemma", "prompt model"],
            inputs=[
                io.Clip.Input("clip", tooltip="A CLIP that can write text, as in Generate Text."),
                io.Float.Input(
                    "temperature",
                    default=0.9,
                    min=0.05,
                    max=2.0,
                    step=0.05,
                    tooltip="How much several variants differ. The first is the most likely answer.",
                ),
                io.Int.Input(
                    "max_length",
                    default=1024,
                    min=16,
                    max=32768,
                    tooltip="The longest answer in tokens. Models that reason first need more.",
                ),
                io.Float.Input(
                    "top_p",
                    default=0.95,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="For several variants: only the most likely words are used, up to this share "
                    "of the probability.",
                ),
            ],
            outputs=[
                sockets.Rewriter.Output("rewriter", tooltip="For RePrompt Rewriter and Reflection Loop."),
            ],
        )

    @classmethod
    def execute(cls, clip, temperature: float, max_length: int, top_p: float) -> io.NodeOutput:
        check_clip(clip)
        return io.NodeOutput(ClipRewriter(clip, temperature=temperature, max_length=max_length, top_p=top_p))


class ClipRewriter:
    """A rewriter that uses a CLIP object, whose weights the core manages.

    The core's tokenizers take one text and put it into the user's turn of their own template, so the system
    text is put before the prompt. Rows are generated one after the other: the core does not batch them.
    """

    name = "clip"
    capabilities = RewriterCapabilities()
    fingerprint = None

    def __init__(
        self,
        clip: Any,
        *,
        temperature: float = 0.9,
        max_length: int = 1024,
        top_p: float = 0.95,
        system: str = SYSTEM,
    ):
        self.clip, self.system = clip, system
        self.temperature, self.max_length, self.top_p = temperature, max_length, top_p

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

        `should_stop` is called before each row. Within a row the core raises its own interrupt after each
        token. `progress(done, rows)` is called after each row.
        """
        critiques = check_request(prompts, variants, seed, critiques)
        found, rows = [], len(prompts) * variants
        for prompt, critique in zip(prompts, critiques, strict=True):
            text = self._request_text(prompt, critique)
            answers = []
            for variant in range(variants):
                if should_stop is not None and should_stop():
                    raise Interrupted("rewriting was stopped; no prompt of this call was rewritten")
                key = row_seed(seed, prompt, critique, variant) if variant else None
                answers.append(read_answer(*self._generate(text, key, prompt)))
                if progress is not None:
                    progress(len(found) * variants + len(answers), rows)
            found.append(answers)
        return found

    def _request_text(self, prompt: str, critique: str | None) -> str:
        plain = _CONTROL.sub(" ", critique) if critique else None
        messages = build_messages(_CONTROL.sub(" ", prompt), plain, self.system)
        return "\n\n".join(message["content"] for message in messages if message["content"])

    def _generate(self, text: str, seed: int | None, prompt: str) -> tuple[str, str, str, str]:
        """The arguments of `read_answer`: answer, user's prompt, rewriter's name, the limit that cut it
        off."""
        tokens = self.clip.tokenize(text, skip_template=False, min_length=1, thinking=False)
        # As in Generate Text, but without its penalties and cut-offs, which would bias the samples.
        ids = self.clip.generate(
            tokens,
            do_sample=seed is not None,
            max_length=self.max_length,
            temperature=self.temperature,
            top_k=0,
            top_p=self.top_p,
            min_p=0.0,
            repetition_penalty=1.0,
            seed=seed,
        )
        limit = f"{self.max_length} tokens" if len(ids) >= self.max_length else ""
        return self.clip.decode(ids), prompt, self.name, limit


def check_clip(clip: Any) -> None:
    """Raises BadInput without a CLIP object, and Unsupported if it, or this ComfyUI, cannot write text."""
    if clip is None:
        raise BadInput(
            "the CLIP input is empty: this checkpoint holds no text encoder; load one with Load CLIP"
        )
    if not hasattr(clip, "generate"):
        raise Unsupported(
            "this ComfyUI cannot write text with a CLIP; update it to 0.15 or newer, or use Load Rewriter"
        )
    encoder = clip.cond_stage_model
    inner = getattr(encoder, str(getattr(encoder, "clip", "")), None)
    parts = [encoder, getattr(inner, "transformer", encoder)]
    if not all(hasattr(part, "generate") for part in parts):
        raise Unsupported(
            f"this CLIP only encodes text ({type(parts[-1]).__name__}); connect one that is a language "
            "model, such as Z-Image's or FLUX.2 klein's Qwen3, or use Load Rewriter"
        )
