"""The command line with the world's names, for launchers of several processes:
`torchrun --nproc_per_node 2 -m tests.backend.training.command train grpo CONFIG.yaml`.

REPRISE_TEST_END="HOW RANK STEP" ends that process in the rollout of that step: killed, by an error, or by
Ctrl-C for its launcher.
"""

from __future__ import annotations

import os
import signal
import sys

from reprise.backend.cli.main import main

from .world import NAMES


def end(how: str, rank: int, step: int) -> None:
    from reprise.backend.training.grpo.rollouts import GrpoRollouts

    collect, make, steps = GrpoRollouts.collect, GrpoRollouts.make_groups, []

    def collected(self, number):
        steps.append(number)
        return collect(self, number)

    def made(self, taken):
        if steps[-1] == step and int(os.environ["RANK"]) == rank:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "stopped":
                os.kill(os.getppid(), signal.SIGINT)
                signal.pause()
            raise MemoryError("no room on this GPU")
        return make(self, taken)

    GrpoRollouts.collect, GrpoRollouts.make_groups = collected, made


if __name__ == "__main__":
    for table, name, where in NAMES:
        table[name] = where
    if "REPRISE_TEST_END" in os.environ:
        how, rank, step = os.environ["REPRISE_TEST_END"].split()
        end(how, int(rank), int(step))
    sys.argv[0] = "reprise"
    main()
