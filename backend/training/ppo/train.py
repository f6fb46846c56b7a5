"""PPO: train PRIP's encoder end to end, against the renderer that its prompts are written for.

Source: Prompt Refinement with Image Pivot (Zhan et al. 2024, arXiv 2407.00247), section 3.4; PPO (Schulman et
al. 2017, arXiv 1707.06347). The paper names PPO, the reward, 1,000 steps of 512 and a learning rate; the rest
is decided here. A pivot is no draw, so the policy is the decoder's distribution of tokens given the
encoder's pivot: decoder and projector are frozen, and the gradient reaches the encoder through them. What it
is kept near to is the same decoder on the pivots that the encoder made at first: there is no second language
model. The critic is a small head on the decoder's states, through which nothing flows back.

The paper's ablations with PPO are other refiners to start from: one whose encoder was trained on the pivots
of random pictures, and one whose decoder was trained without any. This stage is the same for them.

The reward of a refinement is what its pictures score against the user's words more than those of the user's
own prompt do from the same seeds. Seeds belong to a prompt, so that its own pictures are drawn once.

The run folder: `config.yaml`; `metrics.jsonl`, a line for each step; `evaluations.jsonl`; `rollouts/`, every
refinement with its scores and, as variant "original", the user's prompt, and the pictures; `warm/`, the first
pivots; `tensorboard/`; `report.html`; `checkpoints/`; `best/`, the refiner that did best on the held-out
reward, and `final/`, the last one, both as `PripRewriter` loads them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...core.config import save_config
from ..common import distributed
from ..common.run_folder import run_training
from .config import PpoConfig

CONFIG = PpoConfig
SEVERAL = False  # processes may share the work


def train(config: PpoConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train, and return the folder of the finished refiner, `run/final`.

    With `resume` a run goes on from its newest whole checkpoint and ends in the same weights, bit for bit on
    a CPU, as if it had never stopped; a finished run is returned as it is.
    Raises BadInput, CheckpointError, RewardFailed, RenderFailed, and TrainingFailed for a loss that is no
    number or a checkpoint that cannot be written.
    """
    distributed.require_one_process()

    def begin():
        from .loop import PpoLoop

        return PpoLoop(config, run, resume, log)

    return run_training(run, save_config(config), resume, log, begin)
