"""A reward and a rewriter for searches: brightness, and words added."""

from __future__ import annotations

import pytest

from reprise.backend.core.types import RewardSpec, Rewrite, RewriterCapabilities, Verdict
from reprise.backend.rewards.base import BaseReward


class Brightness(BaseReward):
    """The mean of a picture, 0..1; satisfied from `enough` on."""

    def __init__(self, enough=0.6, higher=True):
        self.spec = RewardSpec("brightness", 0.0, 1.0, higher)
        self.enough, self.seen = enough, []

    def score(self, images, prompts):
        self.seen.append(len(prompts))
        return images.mean((1, 2, 3)).tolist()

    def criticize(self, images, prompts):
        bright = [score >= self.enough for score in self.score(images, prompts)]
        return [Verdict(yes, "" if yes else "too dark") for yes in bright]


class Echo:
    """Numbers its variants and remembers the critiques."""

    name = "echo"
    capabilities = RewriterCapabilities()
    fingerprint = None

    def __init__(self):
        self.critiques = []

    def rewrite(self, prompts, variants=1, seed=0, critiques=None):
        self.critiques.append(critiques)
        mark = f" after '{critiques[0]}'" if critiques else ""
        texts = [[f"{p} v{i} s{seed}{mark}" for i in range(variants)] for p in prompts]
        return [[Rewrite("because", text, self.name) for text in of_prompt] for of_prompt in texts]


@pytest.fixture
def brightness():
    return Brightness()


@pytest.fixture
def echo():
    return Echo()
