"""RePrompt Rewriter: a short prompt becomes a reasoned, detailed one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

from comfy_api.latest import io

from ..backend.core.types import Rewrite
from . import sockets
from .loaders import check_prompt

REMEMBERED = 256  # answers; a few hundred bytes each
_REMEMBERED: OrderedDict[tuple, list[Rewrite]] = OrderedDict()
_LOCK = Lock()  # answers of servers come in threads


class RePromptRewriterNode(io.ComfyNode):
    """The rewriting is in `backend/rewriters`; here are the schema, the lock and a cache of answers."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RepriseRewriter",
            display_name="RePrompt Rewriter",
            category=sockets.CATEGORY,
            description="A language model thinks the scene through, then rewrites the prompt (RePrompt, "
            "arXiv 2505.17540). Lock the text to edit it and keep it.",
            search_aliases=["prompt enhancer", "prompt upsampler", "reprompt", "LLM prompt", "magic prompt"],
            inputs=[
                *sockets.rewriter_inputs(
                    sockets.Rewriter.Input(
                        "rewriter",
                        optional=True,
                        tooltip="From Load Rewriter, Endpoint Rewriter or Rewriter from CLIP. "
                        "Not needed while the text is locked.",
                    ),
                    "rewrite",
                ),
                io.Boolean.Input(
                    "locked", default=False, tooltip="Use the text below instead of rewriting again."
                ),
                io.String.Input(
                    "locked_prompt",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="The rewrite, to edit. Used while locked.",
                ),
                io.String.Input(
                    "critique",
                    multiline=True,
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="What was wrong with the last picture; the rewrite corrects it.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompt",
                    display_name="prompt",
                    is_output_list=True,
                    tooltip="The rewritten prompts, for CLIP Text Encode.",
                ),
                io.String.Output(
                    "reason",
                    display_name="reason",
                    is_output_list=True,
                    tooltip="The model's reasoning, one text for each prompt.",
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    async def execute(
        cls,
        prompt: str,
        variants: int,
        seed: int,
        locked: bool,
        rewriter=None,
        locked_prompt: str = "",
        critique: str = "",
    ) -> io.NodeOutput:
        from ..backend.core.errors import BadInput

        if locked:
            text = check_prompt(locked_prompt)
            return _output(prompt, [text], ["(locked: your own text)"], [None])
        asked = check_prompt(prompt)
        if rewriter is None:
            raise BadInput("no rewriter is connected; add Load Rewriter, or lock a text of your own")
        answers = await rewrite_prompt_async(rewriter, asked, variants, seed, critique)
        return _output(
            prompt, [a.prompt for a in answers], [a.reason for a in answers], [a.fallback for a in answers]
        )


def rewrite_prompt(
    rewriter: Any,
    prompt: str,
    variants: int = 1,
    seed: int = 0,
    critique: str = "",
    should_stop: Callable[[], bool] | None = None,
) -> list[Rewrite]:
    """`variants` rewrites of one prompt. An interrupt of ComfyUI is raised here, between two tokens.

    Answers are cached: if memory is short, ComfyUI drops its own cache, and the rounds of a loop would run
    the model again.
    """
    import comfy.model_management as management

    from .memory import load_to_device

    fingerprint = rewriter.fingerprint
    key = (fingerprint, prompt, variants, seed, critique)
    with _LOCK:
        if fingerprint is not None and key in _REMEMBERED:
            _REMEMBERED.move_to_end(key)
            return _REMEMBERED[key]
    load_to_device(rewriter)
    answers = rewriter.rewrite(
        [prompt],
        variants,
        seed,
        [critique or None],
        should_stop=should_stop or (lambda: bool(management.throw_exception_if_processing_interrupted())),
    )[0]
    if fingerprint is not None:
        with _LOCK:
            _REMEMBERED[key] = answers
            while len(_REMEMBERED) > REMEMBERED:
                _REMEMBERED.popitem(last=False)
    return answers


async def rewrite_prompt_async(rewriter: Any, *arguments: Any) -> list[Rewrite]:
    """`rewrite_prompt`, but other nodes can run while a server answers."""
    from .waiting import run_in_thread

    if not rewriter.capabilities.elsewhere:
        return rewrite_prompt(rewriter, *arguments)
    return await run_in_thread(lambda stop: rewrite_prompt(rewriter, *arguments, should_stop=stop))


def _output(
    prompt: str, prompts: list[str], reasons: list[str], fallbacks: list[str | None]
) -> io.NodeOutput:
    return io.NodeOutput(prompts, reasons, ui=rewrite_view(prompt, prompts, reasons, fallbacks))


def rewrite_view(prompt: str, prompts: list[str], reasons: list[str], fallbacks: list[str | None]) -> dict:
    """The data of the node's view: the user's prompt, the rewrites, their reasons and fallbacks."""
    shown = {"prompt": prompt, "prompts": prompts, "reasons": reasons, "fallbacks": fallbacks}
    return {"reprise_rewrite": [shown]}
