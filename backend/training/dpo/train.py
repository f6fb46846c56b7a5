"""DPO of a rewriter on pairs of rewrites, of which one led to better pictures, by TRL's DPOTrainer.

Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7. Pairs are what `reprise preferences mine` found in the
records of any run: best against worst rewrite of a prompt, by the mean score of their pictures, whoever wrote
them. Rendering and training are apart, so that this costs no picture. The reference is the rewriter that it
starts from; `rounds` iterates, or render with `final/`, mine, and start from there.
Departs from TRL: prompt and answers are built by the functions that inference uses, token for token.

The run folder is that of `sft`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...core.config import save_config
from ..common import distributed
from ..common.run_folder import run_training
from .config import DpoConfig

CONFIG = DpoConfig
SEVERAL = False  # processes may share the work


def train(config: DpoConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train, and return the folder of the finished rewriter, `run/final`.

    With `resume` a run goes on from its newest whole checkpoint and ends in the same weights, bit for
    bit on a CPU, as if it had never stopped; a finished run is returned as it is.
    Raises BadInput where there is nothing to learn from, and CheckpointError.
    """
    distributed.require_one_process()

    def begin():
        if config.rounds is not None:
            from .rounds import DpoRounds

            return DpoRounds(config, config.rounds, run, log)
        from .loop import DpoLoop

        return DpoLoop(config, run, resume, log)

    return run_training(run, save_config(config), resume, log, begin)
