"""PRIP as a rewriter: extends the user's prompt towards a picture that people would prefer.

Source: Prompt Refinement with Image Pivot (Zhan et al. 2024, arXiv 2407.00247), section 3.5: the decoder
continues the user's prompt, which it does not see otherwise.
Departs from it: the added text begins with a space or a punctuation mark, so it never extends the last word.
A full stop or comma at the end of the prompt is dropped if something follows (the paper's prompts have "DJ.,
he is wearing"). If the token limit cuts the added text off, its last phrase is dropped. The first variant is
decoded greedily or by beam search, the others are sampled.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, PositiveFloat, PositiveInt

from ...core.errors import BadInput, CheckpointError, Unsupported
from ...core.model_files import EMBEDDED_WEIGHTS, user_path
from ...core.parsing import parse_json
from ...core.types import Rewrite, RewriterCapabilities
from ..decoding import Completion, LocalRewriter, check_stop, context_length, first_not_none, generate
from ..reprompt import SETTINGS, read_settings
from ..rows import RewriteRow, all_rows, group_by_prompt, keep_prompt

if TYPE_CHECKING:
    from torch import Tensor

    from .model import Prip
    from .vision import ImagePivot

EMBEDDED_REFINER = EMBEDDED_WEIGHTS / "refiner"
_LEAD = re.compile(r"[\s,.;:!?…，。、；：！？]*")
_NO_SPACE = "，。、；：！？"  # full-width marks, which no space follows
# From the last mark on; marks inside a number or a weight do not count, as in "f/1.8" and "(glow:1.2".
_LAST_PHRASE = re.compile(r"(?:[,.;](?=\s|$)|[，。；])(?:(?![,.;](?:\s|$))[^，。；])*$")


class RefinerSettings(BaseModel):
    """`reprise.json` of a refiner. For values that are None or missing the defaults apply."""

    max_new_tokens: PositiveInt | None = None
    temperature: PositiveFloat | None = None
    top_p: PositiveFloat | None = None
    beams: PositiveInt | None = None
    length_penalty: float | None = None


class VisionTower:
    """A refiner's vision tower. An object of its own, so that a host can load and move its `model`
    separately."""

    patcher: Any = None  # see `interfaces.Managed`

    def __init__(self, model: ImagePivot):
        self.model = model


class PripRewriter(LocalRewriter):
    """A refiner. Gives no reason; a critique changes only the noise of the sampled variants.

    Settings left out come from the checkpoint's `reprise.json`, then from the defaults: 64 new tokens,
    temperature 0.9, top_p 1, one beam.
    """

    name = "prip"
    capabilities = RewriterCapabilities(reads_critiques=False, reasons=False, describes=True, weights=True)

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
        """`model`: a folder, a `Prip` model, or None for the embedded one.

        `dtype` is the name of a torch dtype; the default is float32 on a CPU, bfloat16 or float16 on a GPU.
        `batch_size` counts rows (prompts x variants). Raises CheckpointError and BadInput.
        """
        import torch

        from .model import Prip

        if isinstance(model, Prip):
            self.folder, self.model, settings = None, model.eval(), RefinerSettings()
        else:
            self.folder = EMBEDDED_REFINER if model is None else user_path(model)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            self.model = Prip.from_pretrained(self.folder, device=device, dtype=dtype)
            settings = read_settings(self.folder / SETTINGS, RefinerSettings)
        self.max_new_tokens = first_not_none(max_new_tokens, settings.max_new_tokens, 64)
        self.temperature = first_not_none(temperature, settings.temperature, 0.9)
        self.top_p = first_not_none(top_p, settings.top_p, 1.0)
        self.beams = first_not_none(beams, settings.beams, 1)
        self.length_penalty = first_not_none(length_penalty, settings.length_penalty, 1.0)
        self.batch_size = batch_size
        self.check_settings()

    # Prompts

    def _rewrite_batches(
        self, rows: Sequence[RewriteRow], seed: int, should_stop: Callable[[], bool] | None
    ) -> Iterator[dict[int, Rewrite]]:
        encoder_ids, prefix_of = self.encode_prompts([row.prompt for row in rows])
        pivots = self.predict_pivots(encoder_ids, should_stop)
        prefixes = [prefix_of[row.prompt] for row in rows]
        for batch, seeds in self._batches(rows, list(map(len, prefixes)), seed, range(len(rows))):
            batch_pivots = [pivots[rows[n].prompt] for n in batch]
            completions = self.generate(batch_pivots, [prefixes[n] for n in batch], seeds, should_stop)
            yield {
                n: self.to_rewrite(one, rows[n].prompt, prefixes[n])
                for n, one in zip(batch, completions, strict=True)
            }

    def encode_prompts(self, prompts: Sequence[str]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """({prompt: token ids for the encoder}, {prompt: token ids that the decoder continues}).

        Raises BadInput for a blank prompt, or one that is too long.
        """
        prompts = list(dict.fromkeys(prompts))
        encoder_ids = dict(zip(prompts, self.model.encoder_ids(prompts)))
        prefixes = {prompt: self.model.decoder_ids(stem_of(prompt)) for prompt in prompts}
        room = context_length(self.model.decoder) - self.model.template_length() - self.max_new_tokens
        for prompt in prompts:
            check_prompt(prompt, len(prefixes[prompt]), room)
        return encoder_ids, prefixes

    def predict_pivots(
        self, ids: dict[str, list[int]], should_stop: Callable[[], bool] | None = None
    ) -> dict[str, Tensor]:
        """{prompt: encoder token ids} -> {prompt: pivot (queries, width)}. Raises Interrupted."""
        import torch

        order, pivots = sorted(ids, key=lambda prompt: len(ids[prompt])), {}
        for start in range(0, len(order), self.batch_size):
            check_stop(should_stop)
            batch = order[start : start + self.batch_size]
            with torch.inference_mode():
                pivots |= dict(zip(batch, self.model.encode([ids[prompt] for prompt in batch]), strict=True))
        return pivots

    def generate(
        self,
        pivots: Sequence[Tensor],
        prefixes: Sequence[Sequence[int]],
        seeds: Sequence[int | None],
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Decodes one prompt per pivot (queries, width), all in one batch.

        Each prompt continues its prefix of token ids; either all prefixes are empty or none is. Only rows
        with a seed are sampled. Raises Interrupted.
        """
        import torch

        model = self.model
        with torch.inference_mode():
            inputs = model.decoder_inputs(torch.stack([one.to(model.device) for one in pivots]), prefixes)
        first_tokens = model.continuation_tokens if prefixes[0] else model.word_tokens
        return generate(
            model.decoder, model.decoder_tokenizer, inputs, seeds, self.decoding, should_stop, first_tokens
        )

    def to_rewrite(self, completion: Completion, prompt: str, prefix: Sequence[int]) -> Rewrite:
        """The refined prompt from the completion of `prefix`; if it adds nothing, the prompt as fallback."""
        stem, tail = stem_of(prompt), self._added_text(prefix, completion)
        refined = join(stem, drop_last_phrase(tail) if completion.truncated else tail)
        if refined == stem:
            return keep_prompt(prompt, self.name, "the refiner added nothing")
        return Rewrite("", refined, self.name)

    def _added_text(self, prefix: Sequence[int], completion: Completion) -> str:
        """The added text with its leading space, which some tokenizers drop at the beginning of a text."""
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        head = self.model.decoder_tokenizer.decode(list(prefix), **plain)
        whole = self.model.decoder_tokenizer.decode([*prefix, *completion.ids], **plain)
        return whole[len(head) :] if whole.startswith(head) else " " + completion.text

    # Pictures

    @cached_property
    def vision_tower(self) -> VisionTower:
        """The vision tower in the refiner's folder, loaded at first use.

        It is on the refiner's device, or on the CPU if a host such as ComfyUI manages devices. Raises
        CheckpointError if there is none or it belongs to another refiner, Unsupported for a refiner that was
        not loaded from a folder.
        """
        from .vision import ImagePivot

        if self.folder is None:
            raise Unsupported(
                "a refiner that was not loaded from a folder has no vision tower; load a folder"
            )
        dtype = self.model.projector.weight.dtype
        device = self.model.device if self.patcher is None else "cpu"
        tower = ImagePivot.from_pretrained(self.folder / "image", device=device, dtype=dtype)
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
        """`variants` prompts for each picture of (B, H, W, 3) in 0..1; the first is the most likely one.

        A picture's prompts do not depend on its neighbours. Raises BadInput, CheckpointError for a refiner
        without a vision tower, Interrupted.
        """
        import torch

        names = [hashlib.sha256(one.detach().float().cpu().numpy().tobytes()).hexdigest() for one in images]
        rows = all_rows(names, variants, seed, None)
        if context_length(self.model.decoder) < self.model.template_length() + self.max_new_tokens:
            raise BadInput(f"max_new_tokens={self.max_new_tokens} does not fit into the decoder; lower it")
        tower, pivots = self.vision_tower.model, {}
        for name, image in zip(names, images):
            check_stop(should_stop)
            with torch.inference_mode():
                pivots[name] = self.model.standardise(tower(image[None]))[0]
        rewrites = {}
        for batch, seeds in self._batches(rows, [0] * len(rows), seed, range(len(rows))):
            batch_pivots = [pivots[rows[n].prompt] for n in batch]
            completions = self.generate(batch_pivots, [[]] * len(batch), seeds, should_stop)
            for n, one in zip(batch, completions, strict=True):
                text = " ".join(one.text.split())
                rewrites[n] = Rewrite("", drop_last_phrase(text) if one.truncated else text, self.name)
        return group_by_prompt([rewrites[n] for n in range(len(rows))], variants)

    def _settings(self) -> list[Any]:
        return [*vars(self.decoding).values(), *self.model.config.model_dump().values()]


def check_tower(tower: ImagePivot, model: Prip) -> None:
    """Raises CheckpointError if the vision tower's pivots do not have the refiner's shape."""
    found = (tower.config.queries, tower.qformer.config.hidden_size)
    expected = (model.config.queries, model.config.width)
    if found != expected:
        raise CheckpointError(
            f"the vision tower gives pivots of {found[0]} x {found[1]}, this refiner reads "
            f"{expected[0]} x {expected[1]}; take the tower that it was trained with"
        )


def is_refiner(folder: Path) -> bool:
    """Whether a folder's `config.json` has model type "prip". False for a damaged or missing file."""
    try:
        found = parse_json((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("model_type") == "prip"


def stem_of(prompt: str) -> str:
    """The user's prompt on one line, without punctuation at its end that would get in the way of a
    continuation."""
    line = " ".join(prompt.split())
    return line.rstrip(" .,;:，。、；：") or line


def join(stem: str, tail: str) -> str:
    """The prompt and its continuation as one line, with at most one punctuation mark between them.

    `tail` may begin with several marks and end with one. If it holds no word, the prompt alone is returned.
    """
    lead = _LEAD.match(tail)
    assert lead is not None  # the pattern also matches the empty string
    body = " ".join(tail[lead.end() :].split()).rstrip(" ,;:，；：")
    if not any(letter.isalnum() for letter in body):
        return stem
    marks = "".join(lead[0].split())
    mark = next((m for m in marks if m in ",，"), marks[:1])
    if stem[-1:] in "!?…！？":  # the prompt's own mark stays; no second one is needed
        mark = ""
    return f"{stem}{mark}{'' if mark and mark in _NO_SPACE else ' '}{body}"


def drop_last_phrase(text: str) -> str:
    """A truncated text without its last phrase, unless that is all there is."""
    shorter = _LAST_PHRASE.sub("", text)
    return shorter if any(letter.isalnum() for letter in shorter) else text


def check_prompt(prompt: str, length: int, room: int) -> None:
    """Raises BadInput for a blank prompt, or one with more than `room` tokens: the decoder needs the rest."""
    from .model import check_length

    if not (prompt.strip() and length):
        raise BadInput("the prompt is empty; write a few words that say what the picture shows")
    check_length(prompt, length, room)
