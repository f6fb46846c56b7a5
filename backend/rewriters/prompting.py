"""The prompt builder and the parser of rewrites, shared by training, evaluation, command line and nodes.

Source: RePrompt (arXiv 2505.17540): a policy writes its reasoning, then the enhanced prompt, as
`<reason>…</reason><prompt>…</prompt>`; its code writes `<think>…</think><answer>…</answer>`.
Departs from it: both pairs of tags are parsed, the paper's are written. Training data and inference requests
are built by the same functions. The parser says why it rejects an answer, and a rejected answer is never
rendered. A critique of an earlier picture goes into the user's turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..core.errors import BadInput, CheckpointError

FORM = "<reason>{reason}</reason><prompt>{prompt}</prompt>"
PLAIN_FORM = "<prompt>{prompt}</prompt>"  # for a rewriter that does not reason
SYSTEM = (
    "You write prompts for a text-to-image model. The user gives a short prompt. First think the picture "
    "through: what must be in it, how many of each thing, where each of them is, colours, sizes, background, "
    "light and style, and what a model could get wrong. Then write one detailed prompt of 15 to 77 words in "
    "which nothing that the user asked for is lost or changed. Answer in exactly this form, with nothing "
    "before or after it:\n" + FORM.format(reason="your thoughts", prompt="the detailed prompt")
)
PLAIN_SYSTEM = (
    "You write prompts for a text-to-image model. The user gives a short prompt. Write one detailed prompt "
    "of 15 to 77 words in which nothing that the user asked for is lost or changed: what is in the picture, "
    "how many of each thing, where each of them is, colours, sizes, background, light and style. Answer in "
    "exactly this form, with nothing before or after it:\n" + PLAIN_FORM.format(prompt="the detailed prompt")
)
_CRITIQUE = (
    "{prompt}\n\nThe last picture was wrong: {critique}\nWrite the answer again so that this is mended."
)

_TAG = re.compile(r"<\s*(?:(/)\s*)?(reason|prompt|think|answer)\s*>", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """A parsed answer: reason and prompt, one line each. `reason` is empty if the model gave none."""

    reason: str
    prompt: str


@dataclass(frozen=True)
class Unparsable:
    """An answer that cannot be used. `why` completes the sentence "the answer …"."""

    why: str


def build_messages(prompt: str, critique: str | None = None, system: str = SYSTEM) -> list[dict[str, str]]:
    """Chat messages that ask for a rewrite of `prompt`, and to fix what `critique` names, if there is one.

    Raises BadInput for a blank prompt.
    """
    if not prompt.strip():
        raise BadInput("the prompt is empty; write a few words that say what the picture shows")
    if critique and critique.strip():
        prompt = _CRITIQUE.format(prompt=prompt.strip(), critique=" ".join(critique.split()))
    return [{"role": "system", "content": system}, {"role": "user", "content": prompt.strip()}]


def render_prompt(tokenizer: Any, prompt: str, critique: str | None = None, system: str = SYSTEM) -> str:
    """The text that the model continues: `build_messages` in the tokenizer's chat template.

    Control tokens in the user's words are replaced by spaces, so that the words cannot open or close a turn.
    If the template has no system role, the system text goes to the beginning of the user's turn.
    Raises BadInput for a blank prompt, CheckpointError for a tokenizer without a chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise CheckpointError(
            "the rewriter's tokenizer has no chat template; expected an instruct or chat model; "
            "choose one, or add chat_template.jinja to its folder"
        )
    from jinja2.exceptions import TemplateError

    for token in control_tokens(tokenizer):
        prompt = prompt.replace(token, " ")
        critique = critique and critique.replace(token, " ")
    messages = build_messages(prompt, critique, system)
    # enable_thinking=False makes Qwen3's template close its own <think> block; the reason goes into <reason>.
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError:
        merged = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        return tokenizer.apply_chat_template([{"role": "user", "content": merged}], **options)


def control_tokens(tokenizer: Any) -> list[str]:
    """Special tokens, which structure a chat and are never part of its text."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted({*tokenizer.all_special_tokens, *(token.content for token in added if token.special)})


def prompt_ids(tokenizer: Any, prompt: str, critique: str | None = None, system: str = SYSTEM) -> list[int]:
    """Token ids of `render_prompt`. No special tokens are added: the template contains them already."""
    text = render_prompt(tokenizer, prompt, critique, system)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_ids(tokenizer: Any, answer: Answer) -> list[int]:
    """Token ids of an answer as the model should write it, with the token that ends the turn.

    An answer without a reason has no <reason> tags.
    """
    text = (FORM if answer.reason else PLAIN_FORM).format(reason=answer.reason, prompt=answer.prompt)
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def parse(text: str) -> Answer | Unparsable:
    """Parses a model's output. It must contain exactly one prompt, closed, with at least one word.

    - `<prompt>` or `<answer>` holds the prompt; `<reason>`, or else `<think>`, holds the reasoning. Tags may
      be upper or lower case. Text outside the tags is ignored, so a chat model may greet.
    - Everything before the first `</think>` is reasoning, even without the opening tag (which some templates
      write themselves), and whatever tags it mentions.
    - Line breaks and runs of spaces become one space. Text in any language is kept.
    - A missing reasoning is accepted here; the structure reward penalises it.
    - Rejected: no prompt or several, a tag inside a block, a block that is not closed (truncated output), a
      prompt without a letter or digit (the form copied with its dots). Of several prompts none is chosen: the
      intended one is unknown, and choosing would teach a policy to write many.
    """
    thought, text = _split_thought(text)
    blocks: dict[str, list[str]] = {}
    opened: tuple[str, int] | None = None
    for match in _TAG.finditer(text):
        slash, name = match[1] or "", match[2].lower()
        if opened is None:
            if slash:
                return Unparsable(f"closes <{name}> without opening it")
            opened = (name, match.end())
        elif slash and name == opened[0]:
            blocks.setdefault(name, []).append(text[opened[1] : match.start()])
            opened = None
        else:
            return Unparsable(f"has <{slash}{name}> inside <{opened[0]}>")
    if opened is not None:
        return Unparsable(f"ends before </{opened[0]}>")
    prompts = blocks.get("prompt", []) + blocks.get("answer", [])
    if len(prompts) != 1:
        return Unparsable("has no <prompt>" if not prompts else f"has {len(prompts)} prompts, not one")
    prompt = _one_line(prompts[0])
    if not any(letter.isalnum() for letter in prompt):
        return Unparsable("has a prompt without words")
    reasons = blocks.get("reason") or blocks.get("think") or [thought]
    return Answer(_one_line(" ".join(reasons)), prompt)


def _split_thought(text: str) -> tuple[str, str]:
    for match in _TAG.finditer(text):
        if match[1] == "/" and match[2].lower() == "think":
            # Tags mentioned in the reasoning are words, not structure.
            return _TAG.sub(" ", text[: match.start()]), text[match.end() :]
    return "", text


def _one_line(text: str) -> str:
    return " ".join(text.split())
