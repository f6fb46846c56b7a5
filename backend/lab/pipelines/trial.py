"""What the renderer does with a tiny pipeline: the columns of the table in docs/own-models.md."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.types import InitImage, Job
from ...renderers.diffusers.renderer import DiffusersRenderer
from .every import SIDE, SIDES

if TYPE_CHECKING:
    from torch import Tensor

_JOBS = [Job("a red cat", 11), Job("two blue dogs", 12), Job("a red cat", 13)]
_STEPS = 4
_ROUNDING = 0.5 / 255 + 1e-6


@dataclass
class Trial:
    """What came of a pipeline of the class `pipeline`.

    `drawn`; `exact`: pruned and lone candidates are equal to the bit; `previews`: the last one is the
    picture; `image_to_image`: None if diffusers has no class for it; `lora`: one changes the picture;
    `training`: diffusion-dpo knows the class. `why` says what came instead.
    """

    pipeline: str = ""
    drawn: bool = False
    exact: bool = False
    previews: bool = False
    image_to_image: bool | None = False
    lora: bool = False
    training: bool = False
    why: dict[str, str] = field(default_factory=dict)


class Looks:
    """A watcher that keeps some rows at each of its steps."""

    def __init__(self, keep: dict[int, list[int]]):
        self.keep, self.steps = keep, frozenset(keep)
        self.seen: list[Any] = []

    def look(self, step: int, rows: list[int], previews: Any) -> list[int]:
        self.seen.append(previews)
        return [row for row in rows if row in self.keep[step]]


def try_pipeline(name: str, build: Callable[[], Any]) -> Trial:
    """Each column, tried with a pipeline that `build` makes. A column that fails is said in `why`."""
    import torch

    trial = Trial()
    torch.manual_seed(0)
    try:
        pipe = build()
        trial.pipeline = type(pipe).__name__
        draw = _renderer(name, pipe)
        pictures = _draw(draw, _JOBS)
        trial.drawn = all(bool(picture.std() > 0.01) for picture in pictures)
    except Exception as error:
        trial.why["drawn"] = _line(error)
        return trial

    def exact() -> bool:
        looks = Looks({1: [0, 1], 2: [1], _STEPS: [1]})
        cut: Any = draw.render(_JOBS, looks).images
        alone = _draw(draw, _JOBS[1:2])[0]
        trial.previews = bool((looks.seen[-1][0] - pictures[1]).abs().max() <= _ROUNDING)
        return torch.equal(cut[1], pictures[1]) and torch.equal(alone, pictures[1])

    def image_to_image() -> bool | None:
        if not draw.capabilities.image_to_image:
            return None
        jobs = [Job(job.prompt, job.seed, InitImage(pictures[0], 0.5)) for job in _JOBS[:2]]
        drawn = _draw(draw, jobs)
        return not torch.equal(drawn[0], pictures[0])

    def lora() -> bool:
        changed = copy.deepcopy(pipe)
        with tempfile.TemporaryDirectory() as folder:
            _add_random_lora(changed, Path(folder) / "random.safetensors")
        return not torch.equal(_draw(_renderer(name, changed), _JOBS[:1])[0], pictures[0])

    def training() -> bool:
        return draw.family is not None

    for column in (exact, image_to_image, lora, training):
        try:
            setattr(trial, column.__name__, column())
        except Exception as error:
            trial.why[column.__name__] = _line(error)
    return trial


def _renderer(name: str, pipe: Any) -> DiffusersRenderer:
    pipe.set_progress_bar_config(disable=True)
    true_cfg = 3.0 if name == "flux_true_cfg" else None
    return DiffusersRenderer(pipe, steps=_STEPS, size=SIDES.get(name, SIDE), chunk=1, true_cfg=true_cfg)


def _draw(renderer: DiffusersRenderer, jobs: list[Job]) -> list[Tensor]:
    return [picture for picture in renderer.render(jobs).images if picture is not None]


def _add_random_lora(pipe: Any, path: Path) -> None:
    """A LoRA of rank 2 on the denoiser's attention, in PEFT's layout, written to a file and read from it."""
    import torch
    from safetensors.torch import save_file

    from ...renderers.diffusers.call import denoisers
    from ...renderers.diffusers.devices import models_of
    from ...renderers.diffusers.lora import apply_loras

    main = denoisers(pipe)[0]
    place = next(name for name, part in models_of(pipe).items() if part is main)
    tensors = {}
    for name, layer in main.named_modules():
        if isinstance(layer, torch.nn.Linear) and "att" in name and layer.in_features >= 2:
            tensors[f"{place}.{name}.lora_A.weight"] = torch.randn(2, layer.in_features)
            tensors[f"{place}.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2)
    save_file(tensors, path)
    apply_loras([(path, 1.0)], pipe, place)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
