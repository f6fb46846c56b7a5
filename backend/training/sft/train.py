"""Supervised fine-tuning of a rewriter on (prompt, reason, rewrite) triples, by TRL's SFTTrainer.

Source: RePrompt (arXiv 2505.17540), first stage: 8,000 examples, learning rate 1e-5, cosine, one epoch,
global batch 128. Departs from it: examples are built by the prompt builder that inference uses, the loss is
on the answer alone, and a killed run goes on exactly.

The data is lines of JSON, {"prompt": the user's prompt, "reason": what the scene has to show, "rewrite": the
prompt to draw} and, for corrections, "critique": what was wrong with a picture of an earlier rewrite.
`reprise data rewrites` makes them with any chat model.

The run folder has `config.yaml`, `metrics.jsonl` (a line for each logged step), `checkpoints/`, and `final/`
in the Hugging Face layout with `reprise.json`, as `RePromptRewriter` loads it.

Several processes (`torchrun --nproc_per_node N -m reprise train sft …`; on GPUs `accelerate launch`, too)
share each batch. The trajectory is that of one process within the rounding of sums, except that the last,
short batch of an epoch is filled up with examples from its beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..common import distributed
from ..common.run_folder import run_training
from .config import SftConfig

CONFIG = SftConfig
SEVERAL = True  # processes may share the work


def train(config: SftConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train a rewriter, and return its folder, `run/final`. Raises as `run_training`."""
    log = distributed.main_only(log)

    def begin():
        from .loop import SftLoop

        return SftLoop(config, run, resume, log)

    return run_training(config, run, resume, log, begin)
