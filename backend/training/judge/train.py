"""The judge: a vision-language model learns to answer questions about a renderer's pictures.

Source: PARM (Guo et al. 2025, arXiv 2501.13926), section 3: LLaVA-OneVision-7B, all weights, one epoch,
learning rate 1e-5, batch 8, on match (ORM), clarity, potential and, for PARM++, reasons in words. Departs
from it: questions and answers are those of `rewards.vlm`, so the loss of a yes or no is over all tokens that
mean it; calibrations, fitted on prompts of their own, make P(yes) the frequency of yes
(`rewards/vlm/calibration.py`).

The data is that of `reprise data judge`, split by prompt: to train on, for calibrations, held out for
figures.

The run folder has `config.yaml`; `metrics.jsonl`, a line for each step; `evaluations.jsonl`; `tensorboard/`;
`report.html`; `checkpoints/`; and `final/` in the Hugging Face layout, which --judge vlm:FOLDER loads. Its
`reprise.json` has the calibrations and marks of the prompts that were trained on. An adapter is merged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..common import distributed
from ..common.run_folder import run_training
from .config import JudgeConfig

CONFIG = JudgeConfig
SEVERAL = False  # processes may share the work


def train(config: JudgeConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train a judge, and return its folder, `run/final`. Raises as `run_training`."""
    distributed.require_one_process("trainer 'judge'")

    def begin():
        from .loop import JudgeLoop

        return JudgeLoop(config, run, resume, log)

    return run_training(config, run, resume, log, begin)
