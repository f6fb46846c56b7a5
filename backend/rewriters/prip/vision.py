"""PRIP's image encoder: pictures -> pivots, by BLIP-2's vision tower and Q-Former.

Source: PRIP (arXiv 2407.00247), section 4.3: "the vision component of BLIP-2 as the frozen Image Encoder";
BLIP-2 (arXiv 2301.12597). It is needed to train and to describe pictures, not to refine a prompt.
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
from ...core.model_files import quiet_loading, user_path
from ...storage.checksums import check_folder

# CLIP's normalisation, which BLIP-2 uses too.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_PARTS = ("vision_model.", "qformer.")  # the used weights of a published BLIP-2, beside `query_tokens`


class ImageConfig(Config):
    """`image/config.json`: arguments of transformers' Blip2VisionConfig and Blip2QFormerConfig."""

    model_type: Literal["prip-image"] = "prip-image"
    queries: int = 32
    vision: dict[str, Any]
    qformer: dict[str, Any]


class ImagePivot(nn.Module):
    """Pictures -> pivots: the outputs of BLIP-2's Q-Former for its queries, not yet standardised."""

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

    def preprocess(self, images: Tensor) -> Tensor:
        """Images (B, H, W, 3) in 0..1 -> normalised (B, 3, S, S), resized to a square as BLIP-2 does.

        Raises BadInput for another shape.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
            raise BadInput(f"expected pictures (B, H, W, 3) in 0..1, got shape {tuple(images.shape)}")
        size: Any = self.vision_model.config.image_size
        pixels = images.to(self.device).movedim(-1, 1).float()
        if pixels.shape[2:] != (size, size):
            pixels = nn.functional.interpolate(
                pixels, (size, size), mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (MEAN, STD))
        return (pixels - mean) / std

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, H, W, 3) in 0..1 -> pivots (B, queries, width), float32."""
        return self.embed(self.preprocess(images))

    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) from `preprocess` -> pivots (B, queries, width), float32.

        The pixels may come from pictures of several sizes.
        """
        features = self.vision_model(pixel_values=pixels.to(self.queries.weight.dtype)).last_hidden_state
        queries = self.queries.weight.expand(len(pixels), -1, -1)
        mask = torch.ones(features.shape[:2], dtype=torch.long, device=features.device)
        output = self.qformer(
            query_embeds=queries,
            encoder_hidden_states=features,
            encoder_attention_mask=mask,
            return_dict=True,
        )
        return output.last_hidden_state.float()

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
        """The model that `save_pretrained` wrote, frozen. Raises CheckpointError."""
        from safetensors.torch import load_file

        where = user_path(folder)
        if not (where / "config.json").is_file():
            raise CheckpointError(
                f"no vision tower at {where}: this refiner was saved without one and "
                "cannot look at pictures; take one with a folder 'image'"
            )
        check_folder(where)
        try:
            config = ImageConfig.model_validate_json((where / "config.json").read_bytes())
            with quiet_loading():
                model = cls(config)
            model.load_state_dict(load_file(where / "model.safetensors"))
        except ValidationError as error:
            raise CheckpointError(
                f"{where / 'config.json'}: {validation_message(error)}; fetch it again"
            ) from error
        except Exception as error:  # torch, transformers and safetensors raise many types
            raise CheckpointError(
                f"cannot load the vision tower in {where}: {first_line(error)}; fetch it again"
            ) from error
        return model.to(device, dtype).eval().requires_grad_(False)

    @classmethod
    def from_blip2(cls, name_or_path: str) -> ImagePivot:
        """Vision tower and Q-Former of a published BLIP-2 (folder or Hugging Face name), frozen.

        Its language model is not loaded. Raises CheckpointError.
        """
        from transformers import Blip2Config

        try:
            with quiet_loading():
                published = Blip2Config.from_pretrained(name_or_path)
                config = ImageConfig(
                    queries=published.num_query_tokens,
                    vision=_arguments(published.vision_config),
                    qformer=_arguments(published.qformer_config),
                )
                model = cls(config)
                tensors = _read_vision_tensors(name_or_path)
            tensors["queries.weight"] = tensors.pop("query_tokens")[0]
            model.load_state_dict(tensors)
        except Exception as error:  # as above, and download errors
            raise CheckpointError(
                f"cannot take BLIP-2's vision part from {name_or_path}: {first_line(error)}; give "
                "a folder or a name such as Salesforce/blip2-opt-2.7b"
            ) from error
        return model.eval().requires_grad_(False)


def _arguments(config: Any) -> dict[str, Any]:
    """The arguments in which a config of BLIP-2 differs from transformers' defaults."""
    not_arguments = ("model_type", "transformers_version", "architectures", "dtype", "torch_dtype")
    return {key: value for key, value in config.to_diff_dict().items() if key not in not_arguments}


def _read_vision_tensors(name_or_path: str) -> dict[str, Tensor]:
    """The tensors of vision tower and Q-Former; only the safetensors files that hold any are read."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    index = cached_file(
        name_or_path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False
    )
    if index is None:
        names = ["model.safetensors"]
    else:
        places = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({file for key, file in places.items() if _is_vision(key)})
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = cached_file(name_or_path, name)
        assert path is not None
        with safe_open(path, "pt") as file:
            tensors |= {key: file.get_tensor(key).float() for key in file.keys() if _is_vision(key)}
    return tensors


def _is_vision(key: str) -> bool:
    return key == "query_tokens" or key.startswith(_PARTS)
