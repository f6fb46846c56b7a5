"""Diffusion-DPO: a LoRA that makes a renderer draw more like the pictures that were liked better.

Source: Wallace et al. 2023 (arXiv 2311.12908); for flows Liu et al. 2025 (arXiv 2501.13918); PARM (arXiv
2501.13926) aligns its generator so. Departs from them: an adapter is trained, and the renderer without it is
the reference, so that there is no second model; the noise and the time of a pair, which both pictures share,
are decided by its place in the run, whatever the batch; a killed run goes on exactly.

The run folder: `config.yaml`; `metrics.jsonl`, a line for each step; `evaluations.jsonl`; `report.html`;
`checkpoints/`; and `final/`, the LoRA as one file that ComfyUI's Load LoRA and diffusers read
(`renderers/lora.py` says which layout a family has), with `reprise.json`. Latents and prompts are encoded
once, into the folder `encoded` of the preference store, where other runs on the same model find them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...core.config import save_config
from ..common import distributed
from ..common.run_folder import run_training
from .config import DiffusionDpoConfig

CONFIG = DiffusionDpoConfig
SEVERAL = False  # processes may share the work


def train(
    config: DiffusionDpoConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print
) -> Path:
    """Train, and return the folder of the finished LoRA, `run/final`.

    With `resume` a run goes on from its newest whole checkpoint and ends in the same weights, bit for bit on
    a CPU, as if it had never stopped; a finished run is returned as it is.
    Raises BadInput where there is nothing to learn from (no pairs, ties alone, pictures gone),
    CheckpointError and Unsupported for a renderer that cannot be trained, TrainingFailed for a loss that is
    no number or a checkpoint that cannot be written.
    """
    distributed.require_one_process()

    def begin():
        if config.rounds is not None:
            from .rounds import DiffusionDpoRounds

            return DiffusionDpoRounds(config, config.rounds, run, log)
        from .loop import DiffusionDpoLoop

        return DiffusionDpoLoop(config, run, resume, log)

    return run_training(run, save_config(config), resume, log, begin)
