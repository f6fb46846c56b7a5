"""RePrompt's ablation at small size: the effects of supervised fine-tuning, of RL, and of reasoning.

Source: RePrompt (arXiv 2505.17540), its tables of SFT x RL and of the reasoning.
Departs from it: its four rewriters start from one general language model. Here `base` takes that model's
place. It has the embedded rewriter's architecture and is trained on general rewrites
(`rewrites.generic_rewrites`), of which few suit the renderer. Random weights would not work: their output
cannot be parsed, so RL finds nothing to reward.

sft is the embedded rewriter. sft-plain is sft, tuned further on 8,000 of its examples without reasons.
base-plain is base, tuned further on 8,000 of its own examples without reasons. GRPO with seed N makes rl-N
from base, rl-plain-N from base-plain, sft-rl-N from sft, and sft-rl-plain-N from sft-plain.

The renderer is the tiny Stable Diffusion in 4 steps, as with few-step models, where success depends on the
prompt's words. In 16 steps either renderer draws nearly every spelled-out layout. In 4 steps, the tiny FLUX
never draws pink, whatever the words, and always draws what it finds easy.

Run: `reprise lab weights ablation WORK [NAME…]`; what is done is not done
again, and what was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...core.config import load_config, parse_config
from ...factory import find_trainer
from ...rewriters.reprompt import EMBEDDED_REWRITER
from ...shapeworld.rewrites import RewriteTriple, generic_rewrites, triples
from ...storage.files import prepare_folder, write_whole
from ...training import shipped_config
from .rewriter import SEED, untrained

SEEDS = (0, 1, 2)
STARTS = {
    **{f"rl-{seed}": "base" for seed in SEEDS},
    **{f"rl-plain-{seed}": "base-plain" for seed in SEEDS},
    **{f"sft-rl-{seed}": "sft" for seed in SEEDS},
    **{f"sft-rl-plain-{seed}": "sft-plain" for seed in SEEDS},
}
"""{rewriter made by GRPO: the rewriter it starts from}."""

GRPO = {
    # In the two other tasks a tuned model's groups are nearly all tied.
    "prompts": "shapeworld:60:two_object,counting,position,color_attribution",
    "renderer": {"name": "shapeworld-sd", "steps": 4},
    "max_steps": 40,
    "beta": 0.003,
    "eval_prompts": "shapeworld:8",
    "paraphrases": None,
}


def build(work: Path, name: str, log: Callable[[str], None] = print) -> Path:
    """The folder of the rewriter `name`; it and the rewriters it starts from are made if missing."""
    if name == "sft":
        return EMBEDDED_REWRITER
    if name == "base":
        model = work / "untrained"
        if not (model / "config.json").exists():
            untrained(model)
        return _tune(work, name, model, generic_rewrites(40_000, SEED), {"max_steps": 2500}, log)
    if name == "sft-plain":
        settings = {"reasoning": False, "learning_rate": 1e-3}
        return _tune(work, name, EMBEDDED_REWRITER, triples(8000, SEED), settings, log)
    if name == "base-plain":
        settings = {"reasoning": False, "learning_rate": 1e-3}
        return _tune(work, name, build(work, "base", log), generic_rewrites(8000, SEED), settings, log)
    start = build(work, STARTS[name], log)
    settings = {"model": str(start), "reasoning": "plain" not in name, "seed": int(name[-1])}
    return run_of("grpo", {**GRPO, **settings}, work / name, log)


def _tune(
    work: Path,
    name: str,
    model: Path,
    examples: Iterable[RewriteTriple],
    settings: dict[str, Any],
    log: Callable[[str], None],
) -> Path:
    data = prepare_folder(work) / f"{name}.jsonl"
    if not data.exists():
        write_whole(data, "".join(json.dumps(one.row()) + "\n" for one in examples))
    settings = {"model": str(model), "data": str(data), **settings}
    return run_of("sft", settings, work / name, log)


def run_of(name: str, settings: dict[str, Any], run: Path, log: Callable[[str], None]) -> Path:
    """Runs the trainer `name` with its config for ShapeWorld, overridden by `settings`, in the folder `run`.

    A stopped run is resumed. Returns the trainer's result folder.
    """
    trainer = find_trainer(name)
    shipped = load_config(trainer.config, shipped_config(name, "shapeworld"))
    whole = parse_config(trainer.config, {**shipped.model_dump(mode="json"), **settings}, name)
    return trainer.train(whole, run, resume=(run / "checkpoints" / "config.yaml").exists(), log=log)
