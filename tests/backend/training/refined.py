"""A tiny refiner that adds one of three colours as its pivot says; also a program that trains it by PPO and
is then killed: `python -m tests.backend.training.refined RUN WHERE STEP`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from .world import COLORS, NAMES

THINGS = ("star", "ring", "cross", "heart")


def teach(folder: Path) -> Path:
    """The folder of a refiner whose decoder writes the colour that a pivot points to, and whose encoder makes
    nearly the same pivot of every prompt, which points to red the least."""
    import torch

    from reprise.backend.rewriters.prip.rewriter import stem_of
    from reprise.backend.training.common.losses import pivot_error, prompt_error

    from ..rewriters.prip.tiny_prip import image, tiny

    torch.set_num_threads(1)
    model = tiny()
    random = torch.Generator().manual_seed(0)
    towards = 2 * torch.randn(3, 5, 24, generator=random)
    end = model.decoder_tokenizer.eos_token_id
    answers = [[*model.decoder_ids(f", {color}"), end] for color in COLORS]
    begun = [model.decoder_ids(stem_of(f"a {thing}")) for thing in THINGS]
    parts = [*model.projector.parameters(), *model.decoder.parameters()]
    optimizer = torch.optim.AdamW(parts, 1e-2)
    for _ in range(60):
        weights = torch.rand(24, 3, generator=random).square()
        weights = weights / weights.sum(1, keepdim=True)
        chosen = torch.multinomial(weights, 1, generator=random)[:, 0].tolist()
        pivots = torch.einsum("bk,kqw->bqw", weights, towards)
        tokens = torch.tensor([answers[i] for i in chosen])
        logits = model.logits(pivots, [begun[i % 4] for i in range(24)], tokens.tolist())
        loss = prompt_error(logits, tokens, torch.ones_like(tokens))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer = torch.optim.AdamW(model.encoder.parameters(), 1e-2)
    ids = model.encoder_ids([f"a {thing}" for thing in (*THINGS, "square", "circle", "triangle")])
    start = torch.einsum("k,kqw->qw", torch.tensor([0.25, 0.4, 0.35]), towards)
    for _ in range(40):
        loss = pivot_error(model.encode(ids), start.expand(len(ids), -1, -1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder, settings={"max_new_tokens": 8, "temperature": 0.7}, image=image())
    return folder


def kill_at(where: str, step: int) -> None:
    """SIGKILL this process at `step` while it rolls out, updates or saves."""
    import safetensors.torch
    import torch

    from reprise.backend.training.ppo.rollouts import PpoRollouts
    from reprise.backend.training.rollouts.scoring import PictureScorer

    def die(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "rollout":
        look, rate, taken = PpoRollouts.draw, PictureScorer._rate, []

        def looked(self, *arguments):
            taken.append(1)
            # The pictures are drawn and in the cache; nothing of the step is on record.
            PictureScorer._rate = die if len(taken) == step else rate
            look(self, *arguments)
            if len(taken) == step:  # all scores were there already
                die()

        PpoRollouts.draw = looked
    elif where == "update":
        update, done = torch.optim.AdamW.step, []

        def stepped(self, *arguments, **options):
            done.append(1)
            found = update(self, *arguments, **options)
            if len(done) == 4 * step - 1:  # of two epochs of two minibatches
                die()
            return found

        torch.optim.AdamW.step = stepped
    else:
        save = safetensors.torch.save_file

        def saved(tensors, path, *rest, **options):
            save(tensors, path, *rest, **options)
            if Path(path).name == "optimizer.safetensors" and Path(path).parent.name == f"checkpoint-{step}":
                Path(path).write_bytes(b"half")
                die()

        safetensors.torch.save_file = saved


if __name__ == "__main__":
    from reprise.backend.training.ppo.config import PpoConfig
    from reprise.backend.training.ppo.train import train

    for table, name, target in NAMES:
        table[name] = target
    run, how, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    settings = PpoConfig(**json.loads(sys.stdin.read()))
    kill_at(how, at)
    train(settings, run)
