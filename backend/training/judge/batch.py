"""What a judge is asked and should answer, as one batch, and the loss on the answers alone.

The prompt is the one that `LocalVLM` asks with, token by token, and P(yes) is read from the same logits in
the same way. Only the padding is on the right here: then a row's positions are those that it has alone,
whatever the architecture does with positions, and no `generate` is needed.
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
    """A question about an RGB picture, and the answer: yes, no, or a sentence."""

    question: str
    picture: Image
    answer: bool | str


@dataclass(frozen=True)
class JudgeBatch:
    """`inputs` of the model, (B, T, …) padded on the right; of each row where its answer begins to be said,
    the tokens of a sentence, or yes or no."""

    inputs: dict[str, Tensor]
    starts: list[int]
    words: list[list[int]]
    yes: list[bool | None]


def encode(vlm: LocalVLM, asks: Sequence[JudgeQuestion]) -> JudgeBatch:
    """Sentences are ended by the token that ends a turn."""
    import torch

    inputs = vlm.inputs([ask.question for ask in asks], [ask.picture for ask in asks])
    words = [_tokens(vlm, ask.answer) if isinstance(ask.answer, str) else [] for ask in asks]
    shape, real = inputs["input_ids"].shape, inputs["attention_mask"].sum(1).tolist()
    length = max(count + len(row) for count, row in zip(real, words, strict=True))
    for key, value in inputs.items():
        if value.shape[:2] != shape:
            continue  # pictures
        blank = vlm.tokenizer.pad_token_id if key == "input_ids" else 0
        made = torch.full((shape[0], length, *value.shape[2:]), blank, dtype=value.dtype, device=value.device)
        for row, (count, said) in enumerate(zip(real, words, strict=True)):
            made[row, :count] = value[row, shape[1] - count :]
            if said:  # of the same kind as the last token of the question
                made[row, count : count + len(said)] = value[row, -1]
                if key == "input_ids":
                    made[row, count : count + len(said)] = made.new_tensor(said)
        inputs[key] = made
    yes = [None if isinstance(ask.answer, str) else ask.answer for ask in asks]
    return JudgeBatch(inputs, [int(count) - 1 for count in real], words, yes)


def losses(vlm: LocalVLM, batch: JudgeBatch) -> Tensor:
    """Of each row, (B,): -log P of all that says its yes or no, or the mean over a sentence's tokens."""
    import torch

    used = [
        range(start, start + max(1, len(said))) for start, said in zip(batch.starts, batch.words, strict=True)
    ]
    kept = sorted({place for row in used for place in row})
    device = batch.inputs["input_ids"].device
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(vlm.model.forward).parameters:
        options["logits_to_keep"] = torch.tensor(kept, device=device)  # of 150,000 words each is a megabyte
        column = {place: i for i, place in enumerate(kept)}
    else:
        column = {place: place for place in kept}
    logits = vlm.model(**batch.inputs, **options).logits.float()  # (B, kept, V)
    # Taken at once: each look at `logits` by itself would cost a gradient of its whole size.
    taken = logits[
        [row for row, places in enumerate(used) for _ in places],
        [column[place] for places in used for place in places],
    ]
    found = []
    for row, said in enumerate(taken.split([len(places) for places in used])):
        yes = batch.yes[row]
        if yes is None:
            found.append(token_loss(said, torch.tensor(batch.words[row], device=device)))
        else:
            found.append(answer_loss(vlm.answer_logprobs(said), torch.tensor([yes], device=device))[0])
    return torch.stack(found)


def _tokens(vlm: LocalVLM, sentence: str) -> list[int]:
    ids = vlm.tokenizer(sentence, add_special_tokens=False)["input_ids"]
    return [*ids, vlm.tokenizer.eos_token_id]
