"""Base of the learned judges: pictures go through a frozen model in batches, each gets one score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput
from ..core.types import RewardCapabilities, RewardSpec
from ..storage.images import to_pil

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn


class BaseReward:
    """What most rewards are: a name that says it all, and no weights to move."""

    capabilities = RewardCapabilities()
    fingerprint: str | None = None
    model: Any = None
    patcher: Any = None  # see `interfaces.Managed`


class LearnedJudge(BaseReward, ABC):
    """A frozen model that scores each picture independently of the others.

    It computes on its weights' device, in their precision, `batch_size` pictures at a time. A host may move
    `model` between calls. float16 weights on a CPU, where it is very slow, are float32 during the call.
    """

    spec: RewardSpec
    capabilities = RewardCapabilities(gradient=True, weights=True)
    model: Any  # an nn.Module
    batch_size: int = 16
    reads_prompt = True  # False: the prompt is ignored and may be empty

    @abstractmethod
    def prepare(self, picture: Image) -> Tensor:
        """An RGB picture of any size -> the model's input (3, S, S)."""

    @abstractmethod
    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Prepared pixels (B, 3, S, S), on the model's device, and B prompts -> scores (B,)."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Images (B, H, W, 3) in 0..1 and the users' prompts -> B scores. See `interfaces.Reward`."""
        import torch

        check_prompts(self.spec.name, images, prompts, self.reads_prompt)
        pictures = to_pil(images)
        scores: list[float] = []
        with inference(self.model):
            weight = next(self.model.parameters())
            for start in range(0, len(prompts), self.batch_size):
                rows = slice(start, start + self.batch_size)
                pixels = torch.stack([self.prepare(picture) for picture in pictures[rows]])
                batch = self.rate(pixels.to(weight.device, weight.dtype), prompts[rows])
                scores += batch.float().tolist()
        return scores


def check_prompts(name: str, images: Tensor, prompts: Sequence[str], reads_prompt: bool = True) -> None:
    """Raises BadInput unless there is one prompt per picture; none may be blank if the judge reads
    prompts."""
    if len(images) != len(prompts):
        raise BadInput(f"expected one prompt per picture, got {len(prompts)} for {len(images)}")
    if reads_prompt and not all(prompt.strip() for prompt in prompts):
        raise BadInput(
            f"{name} compares a picture with words, and a prompt is empty; say what the picture should show"
        )


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Inference mode; a `model` in float16 on a CPU is in float32 meanwhile.

    A host may have loaded the model in inference mode; then it can be converted only in that mode.
    """
    import torch

    weight = next(model.parameters())
    slow = weight.device.type == "cpu" and weight.dtype == torch.float16
    with torch.inference_mode():
        try:
            if slow:
                model.float()
            yield
        finally:
            if slow:
                model.half()


def linear_head(width: int, widths: Sequence[int]) -> nn.Sequential:
    """The head of ImageReward and of the aesthetic predictor: five linear layers without activations.

    Both were published with dropout after the first three layers; the identities keep their numbering.
    """
    from torch import nn

    layers = [nn.Linear(a, b) for a, b in zip((width, *widths), (*widths, 1))]
    gaps = [module for layer in layers[:3] for module in (layer, nn.Identity())]
    return nn.Sequential(*gaps, *layers[3:])
