"""The command line run in this process, with a renderer that draws ShapeWorld scenes in no time."""

from types import SimpleNamespace

import pytest


@pytest.fixture
def reprise(capsys, tmp_path, monkeypatch):
    """Runs one command line in an empty folder: `reprise("render", …)` -> code, out, err."""
    from reprise.backend.cli.main import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REPRISE_MODELS", raising=False)

    def call(*words):
        code = run([str(word) for word in words])
        seen = capsys.readouterr()
        return SimpleNamespace(code=code, out=seen.out, err=seen.err)

    return call


@pytest.fixture
def drawn(monkeypatch):
    """`--renderer fake` draws what is asked for with an even seed, and something else with an odd one."""
    import random

    import torch

    from reprise.backend.renderers.fake import FakeRenderer
    from reprise.backend.shapeworld import drawing, scenes
    from reprise.backend.shapeworld.prompts import parse_prompt, sample_layout

    def draw(self, prompt, seed):
        rng = random.Random(f"{prompt} {seed}")
        scene = sample_layout(parse_prompt(prompt), rng) if seed % 2 == 0 else scenes.random_scene(rng)
        return torch.from_numpy(drawing.draw(scene).copy()).float() / 255

    monkeypatch.setattr(FakeRenderer, "_squares", draw)
    return FakeRenderer
