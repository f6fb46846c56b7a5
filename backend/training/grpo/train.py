"""GRPO: train a rewriter against the renderer that it writes for, on TRL's GRPOTrainer.

Source: RePrompt (arXiv 2505.17540), second stage. Departs from its code: see `rollouts` for what is drawn
and scored, `advantages` for the many rewards; learning rate, KL, clipping and loss are those that later
work agreed on (DAPO, arXiv 2503.14476; Dr. GRPO, arXiv 2503.20783); training and use share one prompt
builder, one sampler and one parser; a killed run goes on exactly.

The run folder: `config.yaml`; `metrics.jsonl`, a line for each step; `evaluations.jsonl`; `rollouts/`,
every rewrite with its scores and advantage in `rollouts.jsonl`, and the pictures; `tensorboard/`;
`report.html`, rewritten as the run goes; `checkpoints/`; `best/`, the rewriter that did best on the
held-out reward, and `final/`, the last one, both as `RePromptRewriter` loads them.

Started in several processes (`torchrun --nproc_per_node N -m reprise train grpo …`, on GPUs `accelerate
launch`, too) a run does the same with more hands: each writes, draws and scores its share of a step's
groups and of an evaluation's prompts, and learns from its share of the rows. What is rolled out and the
trajectory are those of one process within the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...core.config import save_config
from ..common import distributed
from ..common.run_folder import run_training
from .config import GrpoConfig

CONFIG = GrpoConfig
SEVERAL = True  # processes may share the work


def train(config: GrpoConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train, and return the folder of the finished rewriter, `run/final`.

    With `resume` a run goes on from its newest whole checkpoint and ends in the same weights, bit for
    bit on a CPU, as if it had never stopped; a finished run is returned as it is.
    Of several processes (`ranks`) the main one writes, all of it, and alone calls `log`.
    Raises BadInput, CheckpointError, RewardFailed, RenderFailed, and TrainingFailed for a loss that is no
    number or a checkpoint that cannot be written.
    """
    log = distributed.main_only(log)

    def begin():
        from .loop import GrpoLoop

        return GrpoLoop(config, run, resume, log)

    return run_training(run, save_config(config), resume, log, begin)
