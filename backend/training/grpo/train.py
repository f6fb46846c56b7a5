"""GRPO: train a rewriter by the pictures that a renderer draws of its rewrites, on TRL's GRPOTrainer.

Source: RePrompt (arXiv 2505.17540), second stage. Departs from its code: `rollouts` says how pictures are
drawn and scored, `advantages` how many rewards are combined; learning rate, KL, clipping and loss are those
of later work (DAPO, arXiv 2503.14476; Dr. GRPO, arXiv 2503.20783); training and use share one prompt builder,
one sampler and one parser; a killed run goes on exactly.

The run folder has `config.yaml`; `metrics.jsonl`, a line for each step; `evaluations.jsonl`; `rollouts/`,
every rewrite with its scores and advantage in `rollouts.jsonl`, and the pictures; `tensorboard/`;
`report.html`; `checkpoints/`; `best/`, the rewriter that did best on the held-out reward, and `final/`, the
last one, both as `RePromptRewriter` loads them.

With several processes (`torchrun --nproc_per_node N -m reprise train grpo …`; on GPUs `accelerate launch`,
too) each writes, draws and scores its share of a step's groups and of an evaluation's prompts, and learns
from its share of the rows. What is rolled out and the trajectory are those of one process within the rounding
of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..common import distributed
from ..common.run_folder import run_training
from .config import GrpoConfig

CONFIG = GrpoConfig
SEVERAL = True  # processes may share the work


def train(config: GrpoConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train a rewriter, and return its folder, `run/final`. Raises as `run_training`."""
    log = distributed.main_only(log)

    def begin():
        from .loop import GrpoLoop

        return GrpoLoop(config, run, resume, log)

    return run_training(config, run, resume, log, begin)
