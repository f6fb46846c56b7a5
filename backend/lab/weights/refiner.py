"""PRIP's ablation at small size: the effects of the preferred picture's pivot, of the decoder, and of PPO.

Source: PRIP (arXiv 2407.00247), section 5.4 and table 4; the test with swapped pivots is an addition.

- `log`: prompts of practised users of ShapeWorld, with exactly drawn pictures (not by the renderer that PPO
  draws with), scored by ShapeWorld's preference reward.
- `decoder`: PRIP's second stage, trained on the log with a vision tower of its own.
- `blind`: a decoder trained on the same prompts without their pictures.
- With three seeds each: `encoder-N`, the first stage; `random-N`, the same on pivots of random pictures;
  `blind-N`, for the blind decoder; and PPO from each: `ppo-N`, `ppo-random-N`, `ppo-blind-N`.
- `swap`: how much is lost on held-out prompts if each prompt gets the pivot of another prompt.

The networks start from the preset "shapeworld" of `rewriters/prip/presets.py` with random weights, the
tokenizers are `shapeworld.tokenizers.refiner_tokenizers`, and `ppo-0` is the embedded refiner.

Run: `reprise lab weights refiner WORK [NAME…]`. Finished parts are not repeated, stopped ones resume.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ...core.interfaces import Renderer
from ...evaluation.rewriters import compare_rewriters
from ...evaluation.statistics import training_intervals
from ...factory import open_renderer, open_reward, renderer_settings
from ...rewriters.prip.rewriter import PripRewriter
from ...shapeworld.drawing import draw
from ...shapeworld.prompts import sample_prompts
from ...shapeworld.styles import parse_style, preferred_style
from ...shapeworld.users import practised_prompts
from ...storage.files import prepare_folder
from ...training.prip import encoder as prip_encoder
from ...training.prip.make_data import make_log
from ...training.rollouts.picture_log import LoggedPicture
from .ablation import run_of

if TYPE_CHECKING:
    from torch import Tensor

SEEDS = (0, 1, 2)
RENDERER, STEPS, REWARD = (
    "shapeworld-sd-styled",
    4,
    "shapeworld-preference",
)  # as in ppo's shapeworld.yaml
PER_TASK, EACH = 200, 6  # prompts per task; practised users per prompt
KINDS = ("encoder", "random", "blind", "ppo", "ppo-random", "ppo-blind")


def build(work: Path, name: str, log: Callable[[str], None] = print) -> Path:
    """The log, or the folder of the refiner `name`; it and what it starts from are made if missing."""
    if name == "log":
        return _log(work, log)
    if name in ("decoder", "blind"):
        settings: dict[str, Any] = {"log": str(build(work, "log", log)), "pivots": str(work / "pivots")}
        if name == "blind":
            tower = str(build(work, "decoder", log))
            settings |= {"blind": True, "tower": tower, "train_image": False}
        return run_of("prip-decoder", settings, work / name, log)
    kind, _, seed = name.rpartition("-")
    settings = {"seed": int(seed)}
    if kind.startswith("ppo"):
        start = {"ppo": "encoder"}.get(kind, kind.removeprefix("ppo-"))
        settings |= {"init": str(build(work, f"{start}-{seed}", log))}
        return run_of("ppo", settings, work / name, log)
    decoder = build(work, "blind" if kind == "blind" else "decoder", log)
    settings |= {"model": str(decoder), "log": str(build(work, "log", log)), "pivots": str(work / "pivots")}
    if kind == "random":
        no_rewards = prip_encoder.CONFIG.model_fields["rewards"].default
        settings |= {"preferred": "random", "rewards": no_rewards}
    else:
        settings["rewards"] = {REWARD: 1.0}
    return run_of("prip-encoder", settings, work / name, log)


def _log(work: Path, log: Callable[[str], None]) -> Path:
    out, pictures = work / "pictures.jsonl", prepare_folder(work / "pictures")
    if out.exists():
        return out
    records = []
    for number, one in enumerate(practised_prompts(PER_TASK, EACH)):
        path = pictures / f"{number:06}.png"
        if not path.exists():
            Image.fromarray(draw(one.scene, one.style)).save(path)
        records.append(LoggedPicture(one.prompt, one.system, path, {}))
    judge = open_reward(REWARD)
    make_log(out, records, _renderer, {REWARD: judge})
    return out


def _renderer() -> Renderer:
    return open_renderer(renderer_settings(RENDERER, STEPS))


# Swapped pivots


class SwappedPivots(PripRewriter):
    """Refines each prompt with the pivot of another prompt."""

    def __init__(self, model: Path, others: Mapping[str, str]):
        super().__init__(model)
        self.others = others

    def predict_pivots(
        self, ids: dict[str, list[int]], should_stop: Callable[[], bool] | None = None
    ) -> dict[str, Tensor]:
        other_ids, _ = self.encode_prompts([self.others[prompt] for prompt in ids])
        pivots = super().predict_pivots(other_ids, should_stop)
        return {prompt: pivots[self.others[prompt]] for prompt in ids}

    def _settings(self) -> list[Any]:
        return [*super()._settings(), sorted(self.others.items())]


def swap(work: Path, kind: str = "ppo", per_task: int = 22) -> dict[str, list[float]]:
    """Compares refinements with their own and with swapped pivots, on held-out prompts.

    Returns [mean, low, high] over prompts and `kind`'s seeds of two figures: "named", the share of style
    facets in which a refinement names the preferred style, and "score", its pictures' score; each with own
    pivots, with swapped ones, and the difference ("lost").
    """
    cases = sample_prompts("held-out", per_task, 0)
    order = sorted(case.prompt for case in cases)
    random.Random("swap").shuffle(order)
    others = dict(zip(order, [*order[1:], order[0]], strict=True))
    folders = [build(work, f"{kind}-{seed}") for seed in SEEDS]
    makers = {
        "own": [partial(PripRewriter, folder) for folder in folders],
        "swapped": [partial(SwappedPivots, folder, others) for folder in folders],
    }
    named = {name: {} for name in makers}
    for name, made in makers.items():
        for number, make in enumerate(made):
            rewriter = make()
            for case in cases:
                text = rewriter.rewrite([case.prompt])[0][0].prompt
                found = preferred_style(case).agreement(parse_style(text))
                named[name].setdefault(case.task, [[] for _ in made])[number].append(found)
    rewriters = {f"{name} {n}": make for name, made in makers.items() for n, make in enumerate(made)}
    result = compare_rewriters(
        methods={name: [f"{name} {n}" for n in range(len(made))] for name, made in makers.items()},
        rewriters=rewriters,
        renderer=_renderer(),
        baseline="own",
        judge=open_reward(REWARD),
        folder=work / "swap",
        per_task=per_task,
        seeds=2,
    )
    rows = {row["name"]: row for row in result["rows"]}
    return {
        "named, own": training_intervals(named["own"])[0],
        "named, swapped": training_intervals(named["swapped"])[0],
        "named, lost": training_intervals(named["swapped"], over=named["own"])[0],
        "score, own": rows["own"]["overall"],
        "score, swapped": rows["swapped"]["overall"],
        "score, lost": rows["swapped"]["gain"]["interval"],
    }
