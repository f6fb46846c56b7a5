"""Diffusion-DPO: a LoRA that makes a renderer draw more like the better picture of each pair.

Source: Wallace et al. 2023 (arXiv 2311.12908); for flows Liu et al. 2025 (arXiv 2501.13918). PARM (arXiv
2501.13926) aligns its generator in this way. Departs from them: an adapter is trained, and the renderer
without it is the reference, so that there is no second model; the noise and the time of a pair, which both
pictures share, follow from its place in the run, in batches of any size; a killed run goes on exactly.

The run folder has `config.yaml`; `metrics.jsonl`, a line for each step; `evaluations.jsonl`; `tensorboard/`;
`report.html`; `checkpoints/`; and `final/`, the LoRA as one file that ComfyUI's Load LoRA and diffusers read
(`renderers/diffusers/lora.py` has the layout of each family), with `reprise.json`. Latents and prompts are
encoded once, into the folder `encoded` of the preference store, where other runs on the same model find them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..common import distributed
from ..common.run_folder import run_training
from .config import DiffusionDpoConfig

CONFIG = DiffusionDpoConfig
SEVERAL = False  # processes may share the work


def train(
    config: DiffusionDpoConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print
) -> Path:
    """Train a LoRA, and return its folder, `run/final`. Raises as `run_training`."""
    distributed.require_one_process()

    def begin():
        if config.rounds is not None:
            from .rounds import DiffusionDpoRounds

            return DiffusionDpoRounds(config, config.rounds, run, log)
        from .loop import DiffusionDpoLoop

        return DiffusionDpoLoop(config, run, resume, log)

    return run_training(config, run, resume, log, begin)
