"""A reward and a rewriter for searches: brightness, and words added."""

from __future__ import annotations

import pytest

from reprise.backend.types import RewardSpec, Rewrite, Verdict


class Brightness:
    """The mean of a picture, 0..1; satisfied from `enough` on."""

    def __init__(self, enough=0.6, higher=True):
        self.spec = RewardSpec("brightness", 0.0, 1.0, higher)
        self.enough, self.seen = enough, []

    def score(self, images, prompts):
        self.seen.append(len(prompts))
        return images.mean((1, 2, 3)).tolist()

    def criticize(self, images, prompts):
        return [Verdict(s >= self.enough, "" if s >= self.enough else "too dark") for s in self.score(images, prompts)]


class Echo:
    """Numbers its variants and remembers the critiques."""

    name = "echo"

    def __init__(self):
        self.critiques = []

    def rewrite(self, prompts, variants=1, seed=0, critiques=None):
        self.critiques.append(critiques)
        mark = f" after '{critiques[0]}'" if critiques else ""
        return [[Rewrite("because", f"{p} v{i} s{seed}{mark}", self.name) for i in range(variants)] for p in prompts]


@pytest.fixture
def brightness():
    return Brightness()


@pytest.fixture
def echo():
    return Echo()
