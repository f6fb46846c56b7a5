"""The image side of PRIP: pictures -> pivots, by BLIP-2's vision tower and Q-Former.

Source: PRIP (arXiv 2407.00247), section 4.3: "the vision component of BLIP-2 as the frozen Image Encoder";
BLIP-2 (arXiv 2301.12597). Training and the description of pictures need it, refining a prompt does not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ...core.config import Config, validation_message
from ...core.errors import BadInput, CheckpointError, first_line
from ...core.model_files import quiet_loading

# Of CLIP, which BLIP-2 took over.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_PARTS = ("vision_model.", "qformer.")  # of a published BLIP-2, beside `query_tokens`


class ImageConfig(Config):
    """`image/config.json`: arguments of transformers' Blip2VisionConfig and Blip2QFormerConfig."""

    model_type: Literal["prip-image"] = "prip-image"
    queries: int = 32
    vision: dict[str, Any]
    qformer: dict[str, Any]


class ImagePivot(nn.Module):
    """Pictures -> what BLIP-2's queries saw in them, not yet standardised."""

    def __init__(self, config: ImageConfig):
        from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel

        super().__init__()
        self.config = config
        self.vision_model = Blip2VisionModel(Blip2VisionConfig(**config.vision))
        self.qformer = Blip2QFormerModel(Blip2QFormerConfig(**config.qformer))
        self.queries = nn.Embedding(config.queries, self.qformer.config.hidden_size)

    @property
    def device(self) -> torch.device:
        return self.queries.weight.device

    def pixels(self, images: Tensor) -> Tensor:
        """Images (B, H, W, 3) in 0..1 -> (B, 3, S, S), squeezed into the tower's square as BLIP-2 does."""
        if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
            raise BadInput(f"expected pictures (B, H, W, 3) in 0..1, got shape {tuple(images.shape)}")
        size: Any = self.vision_model.config.image_size
        found = images.to(self.device).movedim(-1, 1).float()
        if found.shape[2:] != (size, size):
            found = nn.functional.interpolate(
                found, (size, size), mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (MEAN, STD))
        return (found - mean) / std

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, H, W, 3) in 0..1 -> pivots (B, queries, width), float32."""
        return self.look(self.pixels(images))

    def look(self, pixels: Tensor) -> Tensor:
        """The same of what `pixels` gave, which may come from pictures of several sizes."""
        seen = self.vision_model(pixel_values=pixels.to(self.queries.weight.dtype)).last_hidden_state
        queries = self.queries.weight.expand(len(pixels), -1, -1)
        mask = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        found = self.qformer(
            query_embeds=queries, encoder_hidden_states=seen, encoder_attention_mask=mask, return_dict=True
        )
        return found.last_hidden_state.float()

    def save_pretrained(self, folder: str | Path) -> None:
        from safetensors.torch import save_file

        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, where / "model.safetensors", metadata={"format": "pt"})
        (where / "config.json").write_text(self.config.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> ImagePivot:
        """What `save_pretrained` wrote, frozen. Raises CheckpointError."""
        from safetensors.torch import load_file

        where = Path(folder).expanduser()
        if not (where / "config.json").is_file():
            raise CheckpointError(
                f"no vision tower at {where}: this refiner was saved without one and "
                "cannot look at pictures; take one with a folder 'image'"
            )
        try:
            config = ImageConfig.model_validate_json((where / "config.json").read_bytes())
            with quiet_loading():
                model = cls(config)
            model.load_state_dict(load_file(where / "model.safetensors"))
        except ValidationError as error:
            raise CheckpointError(
                f"{where / 'config.json'}: {validation_message(error)}; fetch it again"
            ) from error
        except Exception as error:  # torch, transformers and safetensors raise a dozen kinds
            raise CheckpointError(
                f"cannot load the vision tower in {where}: {first_line(error)}; fetch it again"
            ) from error
        return model.to(device, dtype).eval().requires_grad_(False)

    @classmethod
    def from_blip2(cls, where: str) -> ImagePivot:
        """Vision tower and Q-Former of a published BLIP-2 (folder or hub name), frozen; its language model is
        not read. Raises CheckpointError."""
        from transformers import Blip2Config

        try:
            with quiet_loading():
                published = Blip2Config.from_pretrained(where)
                config = ImageConfig(
                    queries=published.num_query_tokens,
                    vision=_arguments(published.vision_config),
                    qformer=_arguments(published.qformer_config),
                )
                model = cls(config)
                tensors = _published(where)
            tensors["queries.weight"] = tensors.pop("query_tokens")[0]
            model.load_state_dict(tensors)
        except Exception as error:  # as above, and what downloads raise
            raise CheckpointError(
                f"cannot take BLIP-2's vision part from {where}: {first_line(error)}; give "
                "a folder or a name such as Salesforce/blip2-opt-2.7b"
            ) from error
        return model.eval().requires_grad_(False)


def _arguments(config: Any) -> dict[str, Any]:
    """What sets a part of BLIP-2 apart from transformers' defaults."""
    of_the_file = ("model_type", "transformers_version", "architectures", "dtype", "torch_dtype")
    return {key: value for key, value in config.to_diff_dict().items() if key not in of_the_file}


def _published(where: str) -> dict[str, Tensor]:
    """The vision part's tensors, from those of the safetensors files that hold any."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    index = cached_file(where, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    if index is None:
        names = ["model.safetensors"]
    else:
        places = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({file for key, file in places.items() if _is_vision(key)})
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = cached_file(where, name)
        assert path is not None
        with safe_open(path, "pt") as file:
            tensors |= {key: file.get_tensor(key).float() for key in file.keys() if _is_vision(key)}
    return tensors


def _is_vision(key: str) -> bool:
    return key == "query_tokens" or key.startswith(_PARTS)
