"""DPO of a rewriter on pairs of rewrites, of which one led to better pictures, by TRL's DPOTrainer.

Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7. Pairs are what `reprise preferences mine` found in the
records of any run: best against worst rewrite of a prompt, by the mean score of their pictures, whoever wrote
them. Rendering and training are apart, so that this costs no picture. The reference is the rewriter that it
starts from; `rounds` iterates (`dpo_rounds`), or render with `final/`, mine, and start from there.
Departs from TRL: prompt and answers are built by the functions that inference uses, token for token.

The run folder is that of `sft`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...core.config import save_config
from ...core.model_files import quiet_loading
from ..common import distributed
from ..common.run_folder import claim_run_folder
from ..common.steps import run_training
from .config import DpoConfig
from .loop import learn

CONFIG = DpoConfig


def train(config: DpoConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train, and return the folder of the finished rewriter, `run/final`.

    With `resume` a run goes on from its newest whole checkpoint and ends in the same weights, bit for
    bit on a CPU, as if it had never stopped; a finished run is returned as it is.
    Raises BadInput where there is nothing to learn from, and CheckpointError.
    """
    distributed.require_one_process()
    if config.rounds is not None:
        from .rounds import DpoRounds

        rounds = config.rounds
        return run_training(
            run, save_config(config), resume, log, lambda: DpoRounds(config, rounds, run, log)
        )
    final = run / "final"
    claim_run_folder(run, save_config(config), resume)
    if resume and final.is_dir():
        log(f"{run} is finished already")
        return final

    with quiet_loading():
        return learn(config, run, resume, log)
