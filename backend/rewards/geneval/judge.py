"""GenEval as a judge of photographs: Mask2Former detects COCO's objects, CLIP ViT-L/14 names their colours.

Source: GenEval (arXiv 2310.11513), `evaluation/evaluate_images.py` of github.com/djghosh13/geneval at
af4902f, over mmdetection 2's Mask2Former (Swin-S, COCO instances: shortest side 800, longest 1333, padded to
multiples of 32; masks at the picture's size, boxes around them, confidence the class's probability times the
mask's mean one) and clip_benchmark's zero-shot classifier over open_clip's ViT-L-14 by OpenAI.
The rules are in `rules.py`.
Departs from it: the detector is facebook's checkpoint of the same architecture and data in transformers, not
mmdetection's own. Their agreement is not measured, so figures from here do not belong on GenEval's
leaderboard. As that checkpoint expects, pictures are resized by PIL's bilinear filter, not OpenCV's, and
padded with the mean colour, not with a grey. Of its preprocessor_config.json only mean and deviation are
used, not the size (384 x 384, distorted), at which small things are lost. CLIP computes in its own precision,
not under autocast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import CheckpointError, first_line
from ...core.model_files import quiet_loading
from ...core.parsing import parse_json
from ...core.types import RewardCapabilities, RewardSpec, Verdict
from ...storage.images import to_pil
from ..base import BaseReward, check_prompts, inference
from ..published.checkpoint import fill, placement, read_settings, read_weights, refuse_keys
from ..published.clip import image_embeddings, is_position_ids, read_config, same_name, text_embeddings
from ..published.files import locate
from ..published.preprocess import center_crop
from .prompts import CLASSES, COLORS, GenEvalCase, parse_prompt, read_cases
from .rules import MIN_CONFIDENCE, ObjectDetection, faults, is_right, soft_score

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

LONGEST = 1333 / 800  # maximum of the detector's longest side, as a multiple of `side`
MULTIPLE = 32  # pixels; sides are padded to a multiple of this
PAIRS = 100  # the most probable pairs of query and class may become detections
GROUND = "#999"  # painted over everything but the object whose colour is classified
TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
SCALE = 100.0  # CLIP's factor on cosines


class GenEval(BaseReward):
    """0..1, higher is better. Right pictures score .5 to 1, wrong ones 0 to .5 by how much of them is right.

    The detector gets one picture at a time: its scores are compared with thresholds, so the rest of the batch
    must not change them.
    """

    spec = RewardSpec("geneval", 0.0, 1.0)
    capabilities = RewardCapabilities(weights=True)
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
        """`path`: the detector's folder or its weights; by default, like CLIP's, where `files.find` looks.

        `device` and `dtype` as in `checkpoint.placement`; the detector stays in float32, for which the
        thresholds hold. `side`: the shortest side of the detector's input, in pixels; smaller is faster and
        misses small things. `metadata`: GenEval's JSON lines; they take precedence over parsing, so that
        prompts may be worded freely. Raises CheckpointError, BadInput.
        """
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
        """The faults of each picture; satisfied if there are none."""
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
        """The detections of the classes that `case` names, with colours where it asks for them."""
        import torch

        names = {need.name for need in case.include} | {name for name, _ in case.exclude}
        colored = {need.name: need.count for need in case.include if need.color}
        detections: list[ObjectDetection] = []
        with torch.inference_mode():
            for detection, mask in self.detect(picture, names):
                # The rules check the colours of as many of the most confident ones as were asked for.
                if colored.get(detection.name, 0) > 0:
                    colored[detection.name] -= 1
                    detection = replace(detection, colors=self.colors(picture, detection, mask))
                detections.append(detection)
        return detections

    def detect(self, picture: Image, names: set[str]) -> list[tuple[ObjectDetection, Tensor]]:
        """(detection, mask) of `names` above MIN_CONFIDENCE, most confident first. Masks are (H, W) bool on
        the CPU."""
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
        """{colour: probability} of a detected object, classified on the object alone."""
        from PIL import Image as images_of

        ground = images_of.new("RGB", picture.size, GROUND)
        alone = images_of.composite(picture, ground, images_of.fromarray(mask.numpy())).crop(detection.box)
        clip = self.model["clip"]
        pixels = center_crop(alone, self.size)[None].to(self._device(), clip.text_projection.weight.dtype)
        cosines = image_embeddings(clip, pixels)[0] @ self._classifier(detection.name).T
        return dict(zip(COLORS, (SCALE * cosines).softmax(-1).tolist(), strict=True))

    def _classifier(self, name: str) -> Tensor:
        """Unit text embeddings (10, D) of a class's ten colours, each the mean over the templates."""
        from torch.nn import functional

        if name not in self._classifiers:
            words = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            read = text_embeddings(self.model["clip"], words).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._classifiers[name] = functional.normalize(read.mean(1), dim=-1).cpu()
        return self._classifiers[name].to(self._device())

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device  # the host may move the model between calls


class GenEvalStrict(GenEval):
    """1 if the picture shows everything that the prompt asks for, else 0."""

    spec = RewardSpec("geneval-strict", 0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        return [float(is_right(case, seen)) for case, seen in self._detections(images, prompts)]


def prepare(
    picture: Image, side: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, tuple[int, int]]:
    """An RGB picture -> the detector's input (3, H, W), and the (height, width) of it without padding."""
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
    """A mask's logits (h, w) -> (H, W) at the picture's size.

    They are first resized to `padded_size`, the detector's input, where the padding beyond `content_size` is
    cut off.
    """
    from torch.nn import functional

    high, wide = content_size
    large = functional.interpolate(
        logits[None, None], tuple(padded_size), mode="bilinear", align_corners=False
    )
    size = (picture.height, picture.width)
    return functional.interpolate(large[..., :high, :wide], size, mode="bilinear", align_corners=False)[0, 0]


def read_normalisation(path: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the three channels in a preprocessor_config.json. Raises
    CheckpointError."""
    try:
        settings = parse_json(path.read_bytes())
        mean, std = ([float(value) for value in settings[key]] for key in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} gives no image_mean and image_std: {first_line(error)}") from error
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise CheckpointError(f"{path} should give three channels' mean and deviation, got {mean} and {std}")
    return mean, std


def load_detector(tensors: Mapping[str, Tensor], settings: Path, path: Path) -> nn.Module:
    """Mask2Former for COCO's 80 classes, in float32, from `tensors` under their published names.

    transformers matches the names, which it has changed since they were published. Only tables that follow
    from the sizes, the training loss's weights, and a norm that newer versions add and never use may be
    missing or left over. Raises CheckpointError.
    """
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig.from_dict(read_settings(settings, "mask2former"))
    if config.num_labels != len(CLASSES):
        raise CheckpointError(
            f"{settings} describes a detector of {config.num_labels} classes, expected COCO's "
            f"{len(CLASSES)}; take the coco-instance one"
        )
    with quiet_loading():
        loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report and refused below
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
    """Whether a missing weight is never used here: the training loss's, or the norm after Swin's last
    stage."""
    return key.endswith(".empty_weight") or ".swin.layernorm." in key


def is_derived(key: str) -> bool:
    """Whether a left-over key may be ignored: tables that follow from the sizes, which older versions stored,
    and the training loss's weights."""
    return key.endswith((".relative_position_index", ".empty_weight"))
