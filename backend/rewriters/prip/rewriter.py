"""PRIP: the prompt of a picture that people would prefer, which begins with the user's words.

Source: Prompt Refinement with Image Pivot (Zhan et al. 2024, arXiv 2407.00247), section 3.5: the user's
prompt is put before what the Prompt Decoder writes, which it cannot see otherwise. Departs from it: what is
added begins with a space or a mark, so that it never lengthens the last word; a full stop or comma at the
prompt's end is left out where something follows (the paper's prompts have "DJ., he is wearing"); an addition
that the limit cuts off ends where its last phrase begins. The first variant is greedy or a beam search, the
others are drawn.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, PositiveFloat, PositiveInt

from ...core.errors import BadInput, CheckpointError, Unsupported
from ...core.model_files import EMBEDDED_WEIGHTS
from ...core.types import Rewrite
from ..decoding import LocalRewriter, Written, check_stop, context_length, given, write
from ..reprompt import SETTINGS, read_settings
from ..rows import RewriteRow, all_rows, group_by_prompt, keep_prompt

if TYPE_CHECKING:
    from torch import Tensor

    from .model import Prip
    from .vision import ImagePivot

EMBEDDED_REFINER = EMBEDDED_WEIGHTS / "refiner"
_LEAD = re.compile(r"[\s,.;:!?…，。、；：！？]*")
_NO_SPACE = "，。、；：！？"  # marks that bring their own
# From the last mark on, but not from one inside a number or a weight, as in "f/1.8" and "(glow:1.2".
_LAST_PHRASE = re.compile(r"(?:[,.;](?=\s|$)|[，。；])(?:(?![,.;](?:\s|$))[^，。；])*$")


class RefinerSettings(BaseModel):
    """`reprise.json` of a refiner; what is None there or missing is left to the defaults."""

    max_new_tokens: PositiveInt | None = None
    temperature: PositiveFloat | None = None
    top_p: PositiveFloat | None = None
    beams: PositiveInt | None = None
    length_penalty: float | None = None


class VisionTower:
    """The vision tower of a refiner in a `model` of its own: loaded when a picture is first looked at."""

    def __init__(self, model: ImagePivot):
        self.model = model


class PripRewriter(LocalRewriter):
    """A refiner: it gives no reason, and a critique only changes the noise of variants that are drawn.

    Settings not given come from the checkpoint's `reprise.json`, then from the defaults: 64 new tokens,
    temperature 0.9, top_p 1, one beam.
    """

    name = "prip"
    reads_critiques = False

    def __init__(
        self,
        model: str | Path | Prip | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        beams: int | None = None,
        length_penalty: float | None = None,
        batch_size: int = 16,
    ):
        """`model`: a folder, a model, or None for the embedded one.

        `dtype` is a torch name; by default float32 on a CPU, bfloat16 or float16 on a GPU.
        `batch_size` counts rows, prompts x variants. Raises CheckpointError and BadInput.
        """
        import torch

        from .model import Prip

        if isinstance(model, Prip):
            self.folder, self.model, known = None, model.eval(), RefinerSettings()
        else:
            self.folder = EMBEDDED_REFINER if model is None else Path(model).expanduser()
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            self.model = Prip.from_pretrained(self.folder, device=device, dtype=dtype)
            known = read_settings(self.folder / SETTINGS, RefinerSettings)
        self.max_new_tokens = given(max_new_tokens, known.max_new_tokens, 64)
        self.temperature = given(temperature, known.temperature, 0.9)
        self.top_p = given(top_p, known.top_p, 1.0)
        self.beams = given(beams, known.beams, 1)
        self.length_penalty = given(length_penalty, known.length_penalty, 1.0)
        self.batch_size = batch_size
        self.check()

    # Prompts

    def _written(
        self, rows: Sequence[RewriteRow], seed: int, should_stop: Callable[[], bool] | None
    ) -> Iterator[dict[int, Rewrite]]:
        ids, begun = self.read_prompts([row.prompt for row in rows])
        pivots = self.imagine(ids, should_stop)
        starts = [begun[row.prompt] for row in rows]
        for batch, keys in self._batches(rows, list(map(len, starts)), seed, range(len(rows))):
            seen = [pivots[rows[n].prompt] for n in batch]
            written = self.write(seen, [starts[n] for n in batch], keys, should_stop)
            yield {
                n: self.read(one, rows[n].prompt, starts[n]) for n, one in zip(batch, written, strict=True)
            }

    def read_prompts(self, prompts: Sequence[str]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """By prompt, the token ids that the encoder reads, and those that the decoder goes on from.

        Raises BadInput for a blank prompt, or one that is too long.
        """
        prompts = list(dict.fromkeys(prompts))
        ids = dict(zip(prompts, self.model.read(prompts)))
        begun = {prompt: self.model.write_ids(stem_of(prompt)) for prompt in prompts}
        room = context_length(self.model.decoder) - self.model.taken() - self.max_new_tokens
        for prompt in prompts:
            check_prompt(prompt, len(begun[prompt]), room)
        return ids, begun

    def imagine(
        self, ids: dict[str, list[int]], should_stop: Callable[[], bool] | None = None
    ) -> dict[str, Tensor]:
        """The pivot (queries, width) of each prompt."""
        import torch

        order, pivots = sorted(ids, key=lambda prompt: len(ids[prompt])), {}
        for start in range(0, len(order), self.batch_size):
            check_stop(should_stop)
            batch = order[start : start + self.batch_size]
            with torch.inference_mode():
                pivots |= dict(zip(batch, self.model.encode([ids[prompt] for prompt in batch]), strict=True))
        return pivots

    def write(
        self,
        pivots: Sequence[Tensor],
        begun: Sequence[Sequence[int]],
        keys: Sequence[int | None],
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Written]:
        """What the decoder writes in one batch to each pivot (queries, width) and the ids that its prompt
        begins with; a row without a key is not drawn. All prompts are begun, or none is."""
        import torch

        model = self.model
        with torch.inference_mode():
            inputs = model.inputs(torch.stack([one.to(model.device) for one in pivots]), begun)
        opening = model.opening if begun[0] else model.words
        return write(model.decoder, model.writer, inputs, keys, self.decoding, should_stop, opening)

    def read(self, written: Written, prompt: str, begun: Sequence[int]) -> Rewrite:
        """The refined prompt, from what was written after `begun`; where nothing was, the prompt and why."""
        stem, tail = stem_of(prompt), self._tail(begun, written)
        refined = join(stem, whole_phrases(tail) if written.cut else tail)
        if refined == stem:
            return keep_prompt(prompt, self.name, "the refiner added nothing")
        return Rewrite("", refined, self.name)

    def _tail(self, begun: Sequence[int], written: Written) -> str:
        """What was added, with the space before it, which some tokenizers swallow at a text's beginning."""
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        head = self.model.writer.decode(list(begun), **plain)
        whole = self.model.writer.decode([*begun, *written.ids], **plain)
        return whole[len(head) :] if whole.startswith(head) else " " + written.text

    # Pictures

    @cached_property
    def eye(self) -> VisionTower:
        """The vision tower in the refiner's folder, on its device, or on the CPU where someone else, such as
        ComfyUI, says what is where. Raises CheckpointError without one, or for one of another refiner."""
        from .vision import ImagePivot

        if self.folder is None:
            raise Unsupported("a refiner that was not loaded from a folder has no vision tower to look with")
        kind = self.model.projector.weight.dtype
        device = "cpu" if hasattr(self, "patcher") else self.model.device
        tower = ImagePivot.from_pretrained(self.folder / "image", device=device, dtype=kind)
        check_tower(tower, self.model)
        return VisionTower(tower)

    def describe(
        self,
        images: Tensor,
        variants: int = 1,
        seed: int = 0,
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[list[Rewrite]]:
        """`variants` prompts for each of the pictures (B, H, W, 3) in 0..1, the first the likeliest.

        A picture's prompts do not depend on its neighbours. Raises BadInput, CheckpointError for a refiner
        without a vision tower, Interrupted.
        """
        import torch

        names = [hashlib.sha256(one.detach().float().cpu().numpy().tobytes()).hexdigest() for one in images]
        rows = all_rows(names, variants, seed, None)
        if context_length(self.model.decoder) < self.model.taken() + self.max_new_tokens:
            raise BadInput(f"max_new_tokens={self.max_new_tokens} does not fit into the decoder; lower it")
        eye, pivots = self.eye.model, []
        for image in images:
            check_stop(should_stop)
            with torch.inference_mode():
                pivots.append(self.model.standardise(eye(image[None]))[0])
        seen, found = dict(zip(names, pivots)), {}
        for batch, keys in self._batches(rows, [0] * len(rows), seed, range(len(rows))):
            pivots = [seen[rows[n].prompt] for n in batch]
            for n, one in zip(batch, self.write(pivots, [[]] * len(batch), keys, should_stop), strict=True):
                text = " ".join(one.text.split())
                found[n] = Rewrite("", whole_phrases(text) if one.cut else text, self.name)
        return group_by_prompt([found[n] for n in range(len(rows))], variants)

    def _settings(self) -> list[Any]:
        return [*vars(self.decoding).values(), *self.model.config.model_dump().values()]


def check_tower(tower: ImagePivot, model: Prip) -> None:
    """Raises CheckpointError for a vision tower of another refiner's shape."""
    given = (tower.config.queries, tower.qformer.config.hidden_size)
    expected = (model.config.queries, model.config.width)
    if given != expected:
        raise CheckpointError(
            f"the vision tower gives pivots of {given[0]} x {given[1]}, this refiner reads "
            f"{expected[0]} x {expected[1]}; take the tower that it was trained with"
        )


def is_refiner(folder: Path) -> bool:
    """Whether a folder's `config.json` says that it is PRIP's; one that is damaged may be of any kind."""
    try:
        found = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("model_type") == "prip"


def stem_of(prompt: str) -> str:
    """The user's prompt on one line, without the marks at its end that what follows would stumble over."""
    line = " ".join(prompt.split())
    return line.rstrip(" .,;:，。、；：") or line


def join(stem: str, tail: str) -> str:
    """A prompt and what was written after it as one line, with one mark between them, or none.

    `tail` may begin with several marks and end with one. Where it holds no word, the prompt alone.
    """
    lead = _LEAD.match(tail)
    assert lead is not None  # it matches nothing, too
    body = " ".join(tail[lead.end() :].split()).rstrip(" ,;:，；：")
    if not any(letter.isalnum() for letter in body):
        return stem
    marks = "".join(lead[0].split())
    mark = next((m for m in marks if m in ",，"), marks[:1])
    if stem[-1:] in "!?…！？":  # the prompt's own mark stays and does for both
        mark = ""
    return f"{stem}{mark}{'' if mark and mark in _NO_SPACE else ' '}{body}"


def whole_phrases(text: str) -> str:
    """A text that was cut off, without its last phrase where others come before it."""
    shorter = _LAST_PHRASE.sub("", text)
    return shorter if any(letter.isalnum() for letter in shorter) else text


def check_prompt(prompt: str, length: int, room: int) -> None:
    """Raises BadInput for a blank prompt, or one that leaves the decoder no room to write."""
    from .model import check_length

    if not (prompt.strip() and length):
        raise BadInput("the prompt is empty; write a few words that say what the picture shows")
    check_length(prompt, length, room)
