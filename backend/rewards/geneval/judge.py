"""GenEval's verdict on photographs: COCO's things found by Mask2Former, their colours named by CLIP ViT-L/14.

Source: GenEval (arXiv 2310.11513), `evaluation/evaluate_images.py` of github.com/djghosh13/geneval at
af4902f, over mmdetection 2's Mask2Former (Swin-S, COCO instances: shortest side 800, longest 1333, padded to
multiples of 32; masks at the picture's size, boxes around them, confidence the class's probability times the
mask's mean one) and clip_benchmark's zero-shot classifier over open_clip's ViT-L-14 by OpenAI.
The rules are `geneval_rules`.
Departs from it: the detector is facebook's checkpoint of the same architecture and data in transformers, not
mmdetection's own (its agreement with the original is not measured, so no number of ours belongs on GenEval's
leaderboard). As that one was made for, pictures are resized by PIL's bilinear filter, not OpenCV's, and
padded with the mean colour, not with a grey. Of its preprocessor_config.json the mean and deviation are
taken, not the size (384 by 384, out of shape), at which small things are lost. CLIP computes in its own
precision, not under autocast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import CheckpointError, first_line
from ...core.model_files import quiet_loading
from ...core.types import RewardSpec, Verdict
from ...storage.images import to_pil
from ..base import check_prompts, inference
from ..published.checkpoint import fill, placement, read_settings, read_weights, refuse_keys
from ..published.clip import image_embeddings, is_position_ids, read_config, same_name, text_embeddings
from ..published.files import locate
from ..published.preprocess import center_crop
from .rules import (
    CLASSES,
    COLORS,
    MIN_CONFIDENCE,
    GenEvalCase,
    ObjectDetection,
    faults,
    is_right,
    parse_prompt,
    read_cases,
    soft_score,
)

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

LONGEST = 1333 / 800  # the longest side that the detector sees, as a multiple of the shortest
MULTIPLE = 32  # that the sides are padded to
PAIRS = 100  # of a query and a class, the surest ones, that may become detections
GROUND = "#999"  # painted over what is not the thing whose colour is asked
TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
SCALE = 100.0  # CLIP's, on cosines


class GenEval:
    """0..1, higher is better. Right pictures score .5-1, wrong ones 0-.5, graded by what is there.

    It looks at one picture at a time: where a threshold decides, the neighbours in a batch must not.
    """

    spec = RewardSpec("geneval", 0.0, 1.0)
    model: Any  # an nn.ModuleDict: the detector and CLIP

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        side: int = 800,
        metadata: str | Path | None = None,
    ):
        """`path`: the detector's folder, or its weights; by default where `files.find` looks, as it does for
        CLIP's. `device` and `dtype` as in `checkpoint.placement`; the detector stays in float32, on which
        its thresholds lie. `side`: the shortest that it sees, in pixels; a smaller one is faster and
        misses small things. `metadata`: GenEval's JSON lines; what they say of a prompt goes before what
        its words say, so that it may be worded freely. Raises CheckpointError, BadInput."""
        from torch import nn
        from transformers import CLIPModel

        self.cases = read_cases(Path(metadata)) if metadata else {}
        weights, settings, preprocessing, clip, clip_settings = locate(self.spec.name, path)
        self.side = side
        self.mean, self.std = read_normalisation(preprocessing)
        where, kind = placement(device, dtype)
        config = read_config(clip_settings)
        self.size = config.vision_config.image_size
        detector = load_detector(read_weights(weights), settings, weights).to(where)
        reader = fill(
            lambda: CLIPModel(config),
            read_weights(clip),
            same_name,
            is_position_ids,
            path=clip,
            description=f"the CLIP that {clip_settings} describes",
            device=where,
            dtype=kind,
        )
        self.model = nn.ModuleDict({"detector": detector, "clip": reader})
        self._classifiers: dict[str, Tensor] = {}  # class -> (10, D), on the CPU

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Images (B, H, W, 3) in 0..1 and GenEval-style prompts -> B scores."""
        return [soft_score(case, seen) for case, seen in self._detections(images, prompts)]

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        """What is wrong with each picture; satisfied where nothing is."""
        verdicts = []
        for case, seen in self._detections(images, prompts):
            wrong = faults(case, seen)
            verdicts.append(Verdict(not wrong, "; ".join(wrong), tuple(wrong)))
        return verdicts

    def _detections(
        self, images: Tensor, prompts: Sequence[str]
    ) -> list[tuple[GenEvalCase, list[ObjectDetection]]]:
        check_prompts(self.spec.name, images, prompts)
        cases = [self.cases.get(prompt) or parse_prompt(prompt) for prompt in prompts]
        pictures = to_pil(images)
        with inference(self.model["clip"]):
            return [(case, self.detections_for(picture, case)) for case, picture in zip(cases, pictures)]

    def detections_for(self, picture: Image, case: GenEvalCase) -> list[ObjectDetection]:
        """What is seen of the classes that `case` names, with the colours where it asks for them."""
        import torch

        names = {need.name for need in case.include} | {name for name, _ in case.exclude}
        colored = {need.name: need.count for need in case.include if need.color}
        looked_at: list[ObjectDetection] = []
        with torch.inference_mode():
            for detection, mask in self.detect(picture, names):
                # The rules look at the colours of as many of the surest as were asked for.
                if colored.get(detection.name, 0) > 0:
                    colored[detection.name] -= 1
                    detection = replace(detection, colors=self.colors(picture, detection, mask))
                looked_at.append(detection)
        return looked_at

    def detect(self, picture: Image, names: set[str]) -> list[tuple[ObjectDetection, Tensor]]:
        """Detections of `names` above FAINT, surest first, each with its mask (H, W) of bools on the CPU."""
        import torch

        pixels, shown = prepare(picture, self.side, self.mean, self.std)
        found = self.model["detector"](pixel_values=pixels[None].to(self._device()))
        chances = found.class_queries_logits[0].softmax(-1)[:, :-1]  # (Q, 80); the last says "nothing"
        best, at = chances.flatten().topk(min(PAIRS, chances.numel()))
        seen = []
        for chance, pair in zip(best.tolist(), at.tolist(), strict=True):
            query, label = divmod(pair, len(CLASSES))
            # The mask only takes away from the chance, so where that is faint already none is drawn.
            if CLASSES[label] not in names or chance <= MIN_CONFIDENCE:
                continue
            logits = resize_mask(found.masks_queries_logits[0, query], pixels.shape[1:], shown, picture)
            mask = logits > 0
            confidence = chance * float((logits.sigmoid() * mask).sum() / (mask.sum() + 1e-6))
            if confidence > MIN_CONFIDENCE:
                down, across = torch.where(mask)
                box = (int(across.min()), int(down.min()), int(across.max()) + 1, int(down.max()) + 1)
                seen.append((ObjectDetection(CLASSES[label], confidence, box), mask.cpu()))
        return sorted(seen, key=lambda found: -found[0].confidence)

    def colors(self, picture: Image, detection: ObjectDetection, mask: Tensor) -> dict[str, float]:
        """Probability of each colour, on the thing alone."""
        from PIL import Image as images_of

        ground = images_of.new("RGB", picture.size, GROUND)
        alone = images_of.composite(picture, ground, images_of.fromarray(mask.numpy())).crop(detection.box)
        clip = self.model["clip"]
        pixels = center_crop(alone, self.size)[None].to(self._device(), clip.text_projection.weight.dtype)
        cosines = image_embeddings(clip, pixels)[0] @ self._classifier(detection.name).T
        return dict(zip(COLORS, (SCALE * cosines).softmax(-1).tolist(), strict=True))

    def _classifier(self, name: str) -> Tensor:
        """A class's ten colours in words, each the mean over the templates: (10, D), of length 1."""
        from torch.nn import functional

        if name not in self._classifiers:
            words = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            read = text_embeddings(self.model["clip"], words).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._classifiers[name] = functional.normalize(read.mean(1), dim=-1).cpu()
        return self._classifiers[name].to(self._device())

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device  # the host may move the model between calls


class GenEvalStrict(GenEval):
    """1 where all that was asked for holds, else 0."""

    spec = RewardSpec("geneval-strict", 0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        return [float(is_right(case, seen)) for case, seen in self._detections(images, prompts)]


def prepare(
    picture: Image, side: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, tuple[int, int]]:
    """An RGB picture -> (3, H, W) for the detector and the (height, width) of it that is no padding."""
    import numpy as np
    import torch
    from PIL.Image import Resampling
    from torch.nn import functional

    scale = min(side / min(picture.size), side * LONGEST / max(picture.size))
    wide, high = (max(1, int(length * scale + 0.5)) for length in picture.size)
    resized = np.array(picture.resize((wide, high), Resampling.BILINEAR), dtype=np.float32) / 255
    pixels = (torch.from_numpy(resized) - torch.tensor(mean)) / torch.tensor(std)
    padding = (0, -wide % MULTIPLE, 0, -high % MULTIPLE)  # on the right and below
    return functional.pad(pixels.permute(2, 0, 1), padding), (high, wide)


def resize_mask(
    logits: Tensor, padded_size: Sequence[int], content_size: Sequence[int], picture: Image
) -> Tensor:
    """A mask's logits (h, w) -> (H, W) at the picture's size, by way of what the detector saw, where the
    padding is taken off."""
    from torch.nn import functional

    high, wide = content_size
    large = functional.interpolate(
        logits[None, None], tuple(padded_size), mode="bilinear", align_corners=False
    )
    size = (picture.height, picture.width)
    return functional.interpolate(large[..., :high, :wide], size, mode="bilinear", align_corners=False)[0, 0]


def read_normalisation(path: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of the three channels in a preprocessor_config.json. Raises CheckpointError."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        mean, std = ([float(value) for value in settings[key]] for key in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} gives no image_mean and image_std: {first_line(error)}") from error
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise CheckpointError(f"{path} should give three channels' mean and deviation, got {mean} and {std}")
    return mean, std


def load_detector(tensors: Mapping[str, Tensor], settings: Path, path: Path) -> nn.Module:
    """Mask2Former for COCO's 80 things in float32, with `tensors` under their published names.

    transformers itself matches the names, which it has changed since they were published; nothing may be
    missing or left over but what follows from the sizes, and a norm that newer versions add and never use.
    Raises CheckpointError.
    """
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig.from_dict(read_settings(settings, "mask2former"))
    if config.num_labels != len(CLASSES):
        raise CheckpointError(
            f"{settings} tells {config.num_labels} kinds of things apart, expected COCO's "
            f"{len(CLASSES)}; take the coco-instance one"
        )
    with quiet_loading():
        loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, and refused below
        )
    model, report = loaded
    # Newer versions give (name, found, expected), older ones the name.
    misshapen = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    refuse_keys(
        path,
        f"the Mask2Former that {settings} describes",
        missing=sorted(key for key in report["missing_keys"] if not is_unused(key)),
        unexpected=sorted(key for key in report["unexpected_keys"] if not is_derived(key)),
        misshapen=sorted(misshapen),
    )
    return model.float().eval().requires_grad_(False)


def is_unused(key: str) -> bool:
    """Weights of the training loss, and the norm after Swin's last stage: neither is used here."""
    return key.endswith(".empty_weight") or ".swin.layernorm." in key


def is_derived(key: str) -> bool:
    """Tables that follow from the sizes, which older versions stored, and the training loss's weights."""
    return key.endswith((".relative_position_index", ".empty_weight"))
