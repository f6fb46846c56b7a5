"""The judge: a vision-language model is tuned to answer about a renderer's own pictures.

Source: PARM (Guo et al. 2025, arXiv 2501.13926), section 3: LLaVA-OneVision-7B, in full, one epoch, lr 1e-5,
batch 8, on match (ORM), clarity, potential and, for PARM++, reasons in words. Departs from it: what is asked
and read is what `rewards.vlm` asks and reads, so the loss of a yes or no is over all tokens that say it; and
calibrations, fitted on prompts of their own, make P(yes) how often the answer is yes (`calibration`).

The data is that of `reprise data judge`, split by prompt: trained on, for calibrations, held out for figures.

The run folder: `config.yaml`; `metrics.jsonl`, a line for each step; `evaluations.jsonl`; `report.html`;
`tensorboard/`; `checkpoints/`; and `final/`, in Hugging Face's layout, which --judge vlm:FOLDER loads, with
what it was trained on and its calibrations in `reprise.json`. An adapter is merged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...core.config import save_config
from ..common import distributed
from ..common.run_folder import run_training
from .config import JudgeConfig

CONFIG = JudgeConfig
SEVERAL = False  # processes may share the work


def train(config: JudgeConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train, and return the folder of the judge, `run/final`.

    With `resume` a run goes on from its newest whole checkpoint and ends in the same weights, bit for bit on
    a CPU, as if it had never stopped; a finished run is returned as it is.
    Raises BadInput where there is nothing to learn from, CheckpointError, and TrainingFailed for a loss that
    is no number or a checkpoint that cannot be written.
    """
    from .loop import JudgeLoop

    distributed.require_one_process("trainer 'judge'")
    return run_training(run, save_config(config), resume, log, lambda: JudgeLoop(config, run, resume, log))
