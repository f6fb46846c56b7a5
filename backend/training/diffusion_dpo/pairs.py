"""Preference pairs as a denoiser trains on them: latents and conditions, encoded once and stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, RepriseError
from ...preferences.store import Pair, Store
from ...renderers.diffusers.call import multiple
from ...renderers.diffusers.checkpoints import pipeline_fingerprint
from ...renderers.diffusers.families import Family
from ...renderers.diffusers.lora import check_layout
from ...storage.cache import Cache
from ...storage.checksums import load_tensors, save_tensors
from ..common.checkpoints import write_error
from .denoisers import to_latents
from .own_call import Condition, OwnCall, Tail

if TYPE_CHECKING:
    from torch import Tensor


ENCODED = "encoded"  # folder of the store
TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")
_SIZE = "size"  # of the picture (height, width), beside a latent in a pipeline's own layout


class Encoded:
    """Latents and conditions of pairs, encoded by a pipeline and stored as safetensors.

    An entry's name is made of all that decides it, so that runs on the same model share it. Each is encoded
    by itself, so that it does not depend on what else is encoded.
    """

    def __init__(self, store: Store, pipeline: Any, family: Family, side: int | None, length: int | None):
        check_layout(family)
        self.store, self.pipeline, self.family, self.side, self.length = store, pipeline, family, side, length
        self.folder, self.multiple = store.folder / ENCODED, multiple(pipeline)
        encoders = {name: part for name in TEXT if (part := getattr(pipeline, name, None)) is not None}
        tokenizers = {name.replace("text_encoder", "tokenizer"): None for name in encoders}
        self._vae = _fingerprint({"vae": pipeline.vae}, {})
        self._text = _fingerprint(encoders, {name: getattr(pipeline, name, None) for name in tokenizers})
        # What a pipeline's own call makes depends on its class and settings, too.
        self._own = [] if not family.own_call else [type(pipeline).__name__, _settings(pipeline)]
        self._tails: dict[tuple[int, int], Tail] = {}
        self._layout: dict[tuple, int] | None = None  # of the pipeline's embeddings

    def missing(self, pairs: Sequence[Pair]) -> int:
        """How many latents and conditions are not encoded yet."""
        return sum(not path.is_file() for path in self._paths(pairs))

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """Encode what is missing. Raises BadInput for pictures that cannot be trained on together."""
        for text in dict.fromkeys(pair.condition for pair in pairs):
            if not (path := self._condition_path(text)).is_file():
                _save(path, self._encoded(text))
        for image in dict.fromkeys(side.image for pair in pairs for side in (pair.chosen, pair.rejected)):
            if not (path := self._latent_path(image)).is_file():
                _save(path, self._latent(self.picture(image), pairs[0].condition))

    def _encoded(self, text: str) -> dict[str, Tensor]:
        import torch

        if self.family.own_call:
            condition = self.call((1024, 1024)).encode(text, self._layout)  # before any size counts
            self._layout = condition.layout
            return condition.tensors()
        with torch.no_grad():
            rows = self.family.encode(self.pipeline, text, self.length)
        return {name: value.cpu().contiguous() for name, value in rows.items()}

    def _latent(self, picture: Tensor, text: str) -> dict[str, Tensor]:
        import torch

        if not self.family.own_call:
            return {"latent": to_latents(self.pipeline, picture).cpu().contiguous()}
        high, wide = picture.shape[:2]
        latent = to_latents(self.pipeline, picture, self.tail((wide, high), text))
        return {"latent": latent.cpu().contiguous(), _SIZE: torch.tensor([high, wide])}

    def call(self, size: tuple[int, int], guidance: float | None = None) -> OwnCall:
        """The pipeline's own call for pictures of (width, height) pixels."""
        return OwnCall(self.pipeline, size, guidance, self.length)

    def tail(self, size: tuple[int, int], text: str) -> Tail:
        """How latents of pictures of (width, height) pixels are decoded; `text` has been encoded."""
        if size not in self._tails:
            self._tails[size] = self.call(size).tail(self.condition(text))
        return self._tails[size]

    def latent(self, image: str) -> Tensor:
        """(C, h, w), or in the pipeline's own layout; float32."""
        return _load(self._latent_path(image))["latent"]

    def size(self, image: str) -> tuple[int, int]:
        """(width, height) in pixels of an encoded picture."""
        found = _load(self._latent_path(image))
        if _SIZE in found:
            high, wide = found[_SIZE].tolist()
            return wide, high
        scale = self.pipeline.vae_scale_factor
        return found["latent"].shape[2] * scale, found["latent"].shape[1] * scale

    def condition(self, text: str) -> Any:
        """The embeddings of one prompt, as the denoiser's `conditions` takes them: a `Row`, or a
        `Condition` of a pipeline's own call."""
        found = _load(self._condition_path(text))
        return Condition.of_tensors(found) if self.family.own_call else found

    def picture(self, image: str) -> Tensor:
        """(H, W, 3) in 0..1, as it is trained on. Raises BadInput for one that is damaged, or whose sides
        cannot be encoded."""
        picture = self.store.image(image)
        if picture is None:
            raise BadInput(f"the picture {self.store.image_path(image)} is damaged; mine its run again")
        high, wide = picture.shape[:2]
        multiple = self.multiple
        if self.side is None:
            if high % multiple or wide % multiple:
                raise BadInput(
                    f"a picture of {wide} x {high} cannot be encoded, where sides are multiples "
                    f"of {multiple}; set size"
                )
            return picture
        check_size(self.side, multiple)
        return cropped(picture, self.side)

    def _paths(self, pairs: Sequence[Pair]) -> list[Path]:
        images = dict.fromkeys(side.image for pair in pairs for side in (pair.chosen, pair.rejected))
        texts = dict.fromkeys(pair.condition for pair in pairs)
        return [*map(self._latent_path, images), *map(self._condition_path, texts)]

    def _latent_path(self, image: str) -> Path:
        return self._path("latent", self._vae, image, self.side, *self._own)

    def _condition_path(self, text: str) -> Path:
        return self._path("condition", self._text, text, self.length, *self._own)

    def _path(self, *parts: object) -> Path:
        name = Cache.key(*parts)
        return self.folder / name[:2] / f"{name}.safetensors"


def check_size(size: int, multiple: int) -> None:
    if size % multiple:
        raise BadInput(f"size={size} is no multiple of {multiple}, which this renderer draws in")


def cropped(picture: Tensor, size: int) -> Tensor:
    """(H, W, 3) -> (size, size, 3): resized by the shorter side, then cut from the middle."""
    from torch.nn import functional

    high, wide = picture.shape[:2]
    if (high, wide) == (size, size):
        return picture
    scale = size / min(high, wide)
    shape = [max(size, round(side * scale)) for side in (high, wide)]
    resized = (
        functional.interpolate(
            picture.permute(2, 0, 1)[None], shape, mode="bicubic", antialias=True, align_corners=False
        )[0]
        .permute(1, 2, 0)
        .clamp(0, 1)
    )
    top, left = ((side - size) // 2 for side in shape)
    return resized[top : top + size, left : left + size].contiguous()


def _fingerprint(models: dict[str, Any], tokenizers: dict[str, Any]) -> str:
    return pipeline_fingerprint(SimpleNamespace(components=models, **tokenizers))


def _settings(pipeline: Any) -> str:
    """A pipeline's own settings, without its parts."""
    given = {name: value for name, value in pipeline.config.items() if name not in pipeline.components}
    return repr(sorted((name, value) for name, value in given.items() if not name.startswith("_")))


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Written whole or not at all, so that a killed run leaves no half entry."""
    try:
        save_tensors(path, tensors)
    except RepriseError as error:
        raise write_error(path, error) from error


def _load(path: Path) -> dict[str, Tensor]:
    return load_tensors(path, "delete it and go on with --resume")
