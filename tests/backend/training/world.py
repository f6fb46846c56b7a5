"""A world in which one word counts: a renderer that draws red what is called red, a judge that likes red.

To be registered by name (`NAMES`), so that the trainer is asked as a user asks it; also run as a program,
which is then killed: `python -m tests.backend.training.world RUN WHERE STEP`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from reprise.backend.core.registry import RENDERERS, REWARDS
from reprise.backend.core.types import RendererCapabilities, RenderResult, RewardSpec
from reprise.backend.rewards.base import BaseReward

COLORS = ("red", "green", "blue")


class WordRenderer:
    """8 x 8 pictures, red, green or blue as the prompt's first such word, a little noise by the seed."""

    name = "words"
    capabilities = RendererCapabilities(settings=frozenset({"steps"}))
    model = None

    def __init__(self, steps=1):
        self.steps, self.fingerprint, self.calls = steps, f"words-{steps}", []

    def render(self, jobs, watcher=None, progress=None):
        import torch

        self.calls.append(list(jobs))
        images = []
        for job in jobs:
            noise = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(job.seed))
            image = noise * 0.2
            named = [word for word in job.prompt.split() if word in COLORS]
            if named:
                image[:, :, COLORS.index(named[0])] += 0.8
            images.append(image)
        return RenderResult(images, [None] * len(jobs), len(jobs), len(jobs))


class Redness(BaseReward):
    """Mean of the red channel, 0..1."""

    spec = RewardSpec("redness", 0.0, 1.0)

    def score(self, images, prompts):
        return images[..., 0].mean((1, 2)).tolist()


class Blueness(Redness):
    spec = RewardSpec("blueness", 0.0, 1.0)

    def score(self, images, prompts):
        return images[..., 2].mean((1, 2)).tolist()


class FailsOnGreen(Redness):
    """Raises for a batch that holds a green picture."""

    spec = RewardSpec("fails-on-green", 0.0, 1.0)

    def score(self, images, prompts):
        if (images[..., 1].mean((1, 2)) > 0.5).any():
            raise ValueError("green")
        return super().score(images, prompts)


class FailsAlways(Redness):
    spec = RewardSpec("fails-always", 0.0, 1.0)

    def score(self, images, prompts):
        raise ConnectionError("the judge is down")


NAMES = (
    (RENDERERS, "words", f"{__name__}:WordRenderer"),
    *(
        (REWARDS, reward.spec.name, f"{__name__}:{reward.__name__}")
        for reward in (Redness, Blueness, FailsOnGreen, FailsAlways)
    ),
)


def kill_at(where: str, step: int) -> None:
    """SIGKILL this process at optimiser step `step` while it rolls out, updates or saves."""
    import torch
    from transformers import Trainer

    from reprise.backend.training.grpo.rollouts import GrpoRollouts
    from reprise.backend.training.rollouts.scoring import PictureScorer

    def die(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "rollout":
        collect, rate, steps = GrpoRollouts.collect, PictureScorer._rate, []

        def collected(self, number):
            steps.append(number)
            found = collect(self, number)
            steps.clear()
            return found

        GrpoRollouts.collect = collected
        # The pictures are drawn and in the cache; nothing of the step is on record.
        PictureScorer._rate = lambda self, *rest: die() if steps == [step] else rate(self, *rest)
    elif where == "update":
        update, taken = torch.optim.AdamW.step, []

        def stepped(self, *arguments, **options):
            taken.append(1)
            found = update(self, *arguments, **options)
            if len(taken) == step:
                die()
            return found

        torch.optim.AdamW.step = stepped
    else:
        save = Trainer._save_optimizer_and_scheduler

        def saved(self, folder):
            save(self, folder)
            if self.state.global_step >= step:
                Path(folder, "optimizer.pt").write_bytes(b"half")
                die()

        Trainer._save_optimizer_and_scheduler = saved


if __name__ == "__main__":
    from reprise.backend.training.grpo.config import GrpoConfig
    from reprise.backend.training.grpo.train import train

    for table, name, where in NAMES:
        table[name] = where
    folder, how, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    settings = GrpoConfig(**json.loads(sys.stdin.read()))
    kill_at(how, at)
    train(settings, folder)
