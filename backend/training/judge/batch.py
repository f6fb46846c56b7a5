"""Questions to a judge and the right answers as one batch, and the loss on the answers alone.

A question has the same tokens as when `LocalVLM` asks it, and P(yes) is read from the same logits in the same
way. Only the padding is on the right here: a row then has the positions that it has alone, in every
architecture, and no `generate` is needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.losses import answer_loss, token_loss

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ...rewards.vlm.local import LocalVLM


class JudgeQuestion(NamedTuple):
    """A question about an RGB picture, and the right answer: yes, no, or a sentence."""

    question: str
    picture: Image
    answer: bool | str


@dataclass(frozen=True)
class JudgeBatch:
    """Inputs of the model and, for each row, the right answer."""

    inputs: dict[str, Tensor]  # (B, T, …), padded on the right
    starts: list[int]  # the place whose logits are for the first token of the answer
    sentences: list[list[int]]  # tokens; none where the answer is yes or no
    yes: list[bool | None]  # None where the answer is a sentence


def encode(vlm: LocalVLM, questions: Sequence[JudgeQuestion]) -> JudgeBatch:
    """The batch of some questions. A sentence ends with the token that ends a turn."""
    import torch

    inputs = vlm.inputs([one.question for one in questions], [one.picture for one in questions])
    sentences = [_tokens(vlm, one.answer) if isinstance(one.answer, str) else [] for one in questions]
    shape, lengths = inputs["input_ids"].shape, inputs["attention_mask"].sum(1).tolist()
    longest = max(length + len(tokens) for length, tokens in zip(lengths, sentences, strict=True))
    for key, value in inputs.items():
        if value.shape[:2] != shape:
            continue  # pictures
        blank = vlm.tokenizer.pad_token_id if key == "input_ids" else 0
        padded = torch.full(
            (shape[0], longest, *value.shape[2:]), blank, dtype=value.dtype, device=value.device
        )
        for row, (length, tokens) in enumerate(zip(lengths, sentences, strict=True)):
            padded[row, :length] = value[row, shape[1] - length :]
            if tokens:  # of the same kind as the last token of the question
                padded[row, length : length + len(tokens)] = value[row, -1]
                if key == "input_ids":
                    padded[row, length : length + len(tokens)] = padded.new_tensor(tokens)
        inputs[key] = padded
    yes = [None if isinstance(one.answer, str) else one.answer for one in questions]
    return JudgeBatch(inputs, [int(length) - 1 for length in lengths], sentences, yes)


def losses(vlm: LocalVLM, batch: JudgeBatch) -> Tensor:
    """The loss of each row, (B,): -log P of all that means its yes or no, or the mean over a sentence's
    tokens."""
    import torch

    used = [
        range(start, start + max(1, len(tokens)))
        for start, tokens in zip(batch.starts, batch.sentences, strict=True)
    ]
    needed = sorted({place for row in used for place in row})
    device = batch.inputs["input_ids"].device
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(vlm.model.forward).parameters:
        # The logits of one place are a megabyte where there are 150,000 tokens.
        options["logits_to_keep"] = torch.tensor(needed, device=device)
        column = {place: i for i, place in enumerate(needed)}
    else:
        column = {place: place for place in needed}
    logits = vlm.model(**batch.inputs, **options).logits.float()  # (B, places, V)
    # In one go: each part that is taken of `logits` has a gradient of the whole size.
    taken = logits[
        [row for row, places in enumerate(used) for _ in places],
        [column[place] for places in used for place in places],
    ]
    found = []
    for row, part in enumerate(taken.split([len(places) for places in used])):
        yes = batch.yes[row]
        if yes is None:
            found.append(token_loss(part, torch.tensor(batch.sentences[row], device=device)))
        else:
            found.append(answer_loss(vlm.answer_logprobs(part), torch.tensor([yes], device=device))[0])
    return torch.stack(found)


def _tokens(vlm: LocalVLM, sentence: str) -> list[int]:
    ids = vlm.tokenizer(sentence, add_special_tokens=False)["input_ids"]
    return [*ids, vlm.tokenizer.eos_token_id]
