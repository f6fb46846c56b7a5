"""Supervised fine-tuning of a rewriter on (prompt, reason, rewrite) triples, by TRL's SFTTrainer.

Source: RePrompt (arXiv 2505.17540), first stage: 8,000 examples, lr 1e-5 cosine, one epoch, global
batch 128. Departs from it: the examples are built by the very prompt builder that inference uses, the
loss is on the answer alone, and a killed run goes on exactly.

The data is lines of JSON, {"prompt": what the user typed, "reason": how the scene is rehearsed, "rewrite":
the prompt to draw} and, for mending, "critique": what was wrong with a picture of an earlier rewrite.
`reprise data rewrites` makes them with any chat model.

The run folder: `config.yaml`, `metrics.jsonl` (a line per logged step), `checkpoints/`, and `final/`
in the Hugging Face layout with `reprise.json`, which `RePromptRewriter` loads.

Started in several processes (`torchrun --nproc_per_node N -m reprise train sft …`, on GPUs `accelerate
launch`, too) they share each batch: the trajectory is that of one process within the rounding of sums, but
that an epoch's last, short batch is filled up with examples of its beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...core.config import save_config
from ..common import distributed
from ..common.run_folder import run_training
from .config import SftConfig

CONFIG = SftConfig
SEVERAL = True  # processes may share the work


def train(config: SftConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train, and return the folder of the finished rewriter, `run/final`.

    With `resume` a run goes on from its newest whole checkpoint and ends in the same weights, bit for
    bit on a CPU, as if it had never stopped; a finished run is returned as it is.
    Of several processes (`distributed`) only the main one writes and calls `log`.
    Raises BadInput, CheckpointError, and TrainingFailed where the disk is full.
    """
    log = distributed.main_only(log)

    def begin():
        from .loop import SftLoop

        return SftLoop(config, run, resume, log)

    return run_training(run, save_config(config), resume, log, begin)
