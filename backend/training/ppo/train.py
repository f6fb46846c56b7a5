"""PPO: train PRIP's encoder end to end, by the pictures that a renderer draws of its prompts.

Source: Prompt Refinement with Image Pivot (Zhan et al. 2024, arXiv 2407.00247), section 3.4; PPO (Schulman et
al. 2017, arXiv 1707.06347). The paper names PPO, the reward, 1,000 steps of 512 and a learning rate; the rest
is decided here. A pivot is not sampled, so the policy is the decoder's distribution of tokens given the
encoder's pivot: decoder and projector are frozen, and the gradient reaches the encoder through them. The
reference of the KL is the same decoder on the pivots that the encoder made at first, so there is no second
language model. The value head is small, reads the decoder's states, and sends no gradient back into them.

The paper's ablations with PPO differ in the refiner to start from: its encoder was trained on the pivots of
random pictures, or its decoder without any. This stage is the same for them.

The reward of a refinement is by how much its pictures score above those of the user's own prompt from the
same seeds, both judged by the user's words. Seeds belong to a prompt, so that its own pictures are drawn
once.

The run folder has `config.yaml`; `metrics.jsonl`, a line for each step; `evaluations.jsonl`; `rollouts/`,
every refinement with its scores (and, as variant "original", the user's prompt), and the pictures; `warm/`,
the first pivots; `tensorboard/`; `report.html`; `checkpoints/`; `best/`, the refiner that did best on the
held-out reward, and `final/`, the last one, both as `PripRewriter` loads them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..common import distributed
from ..common.run_folder import run_training
from .config import PpoConfig

CONFIG = PpoConfig
SEVERAL = False  # processes may share the work


def train(config: PpoConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train a refiner, and return its folder, `run/final`. Raises as `run_training`."""
    distributed.require_one_process()

    def begin():
        from .loop import PpoLoop

        return PpoLoop(config, run, resume, log)

    return run_training(config, run, resume, log, begin)
