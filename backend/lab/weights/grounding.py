"""What the tiny judge learns to name beside its answers: what lies where in a picture, and what words mean.

Heads of its training alone. `Seeing` reads the vision tower by the words' own embeddings; `Finding` reads the
language model at each noun of a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...shapeworld.captions import plural
from ...shapeworld.scenes import COLORS, GROUNDS, PLACES, SHAPES, SIZE, Scene, Thing

PATCH, MERGED = 16, 1  # pixels of a patch's side; patches along a token's side
TOKENS = SIZE // PATCH // MERGED  # along a picture's side
FOUND_AFTER, MOST = 2, 4  # the language model's layer that nouns are read after; the most things of a kind
# What a token of the picture is named by: where a thing's middle lies, its colour and shape, elsewhere the
# ground; and everywhere its column and row.
NAMES = (
    (*COLORS, *GROUNDS),
    (*SHAPES, "background"),
    ("left", "center", "right"),
    ("top", "middle", "bottom"),
)
SINGULAR = {word: shape for shape in SHAPES for word in (shape, plural(shape))}
IGNORED = -100  # cross_entropy's mark of what has no answer
THING_WEIGHT = 10.0  # of a token with a thing against one without
PLACED = 0.1  # weight of columns and rows


class PatchNaming(nn.Module):
    """A judge's model and the scale of its pictures' names."""

    def __init__(self, model: Any, ids: Sequence[Sequence[int]]):
        super().__init__()
        self.model = model
        self.scale = nn.Parameter(torch.ones(len(NAMES)))
        self.ids = [torch.tensor(row) for row in ids]
        self.seen: torch.Tensor | None = None  # in the last forward pass: (B, TOKENS², width)
        model.model.connector.register_forward_hook(self._keep)

    def _keep(self, _connector: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        self.seen = output

    def forward(self, pictures: torch.Tensor) -> None:
        """Look at normalised pictures (B, 1, 3, SIZE, SIZE)."""
        inner = self.model.model
        inner.connector(inner.vision_model(pixel_values=pictures[:, 0]).last_hidden_state)

    def loss(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Cross-entropy of the names of each token of the pictures that were looked at last."""
        logits = self._logits()
        answers = torch.tensor([patch_names(scene) for scene in scenes])  # (B, TOKENS², len(NAMES))
        weights = torch.where(answers[..., 1] < len(SHAPES), THING_WEIGHT, 1.0).flatten()
        parts = [
            F.cross_entropy(one.flatten(0, 1), answer.flatten(), reduction="none")
            for one, answer in zip(logits, answers.unbind(-1))
        ]
        color, shape = ((part * weights).sum() / weights.sum() for part in parts[:2])
        column, row = (part.mean() for part in parts[2:])
        return color + shape + PLACED * (column + row)

    @torch.no_grad()
    def accuracy(self, scenes: Sequence[Scene]) -> float:
        """Share of the things whose colour and shape are named where their middle lies."""
        answers = torch.tensor([patch_names(scene) for scene in scenes])
        color, shape = (one.argmax(-1) == answers[..., i] for i, one in enumerate(self._logits()[:2]))
        return float((color & shape)[answers[..., 1] < len(SHAPES)].float().mean())

    def _logits(self) -> list[torch.Tensor]:
        assert self.seen is not None, "nothing was looked at"
        known = self.model.get_input_embeddings().weight
        return [(self.seen @ known[ids].T) * scale for ids, scale in zip(self.ids, self.scale)]


def patch_names(scene: Scene) -> list[list[int]]:
    """Of each token, row by row, the numbers of its names."""
    at: dict[tuple[int, int], Thing] = {
        (int(t.y * TOKENS // SIZE), int(t.x * TOKENS // SIZE)): t for t in scene.things
    }
    found = []
    for row in range(TOKENS):
        for column in range(TOKENS):
            thing = at.get((row, column))
            color = NAMES[0].index(thing.color if thing else scene.ground)
            shape = NAMES[1].index(thing.shape if thing else "background")
            found.append([color, shape, column * 3 // TOKENS, row * 3 // TOKENS])
    return found


def to_pixels(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """(B, 1, 3, SIZE, SIZE), as the processor makes them."""
    made = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return made[:, None]


def patch_naming(model: Any, tokens: Any) -> PatchNaming:
    ids = [[tokens(f" {word}", add_special_tokens=False)["input_ids"] for word in row] for row in NAMES]
    assert all(len(one) == 1 for row in ids for one in row), "a name is more than a token"
    return PatchNaming(model, [[one[0] for one in row] for row in ids])


class NounGrounding(nn.Module):
    """What the nouns of a question point at, read from the language model in training alone: how many such
    things the picture shows, and where the only one lies; of a background, whether it is the picture's.

    One yes or no tells little of what a prompt and a picture have to do with each other.
    """

    def __init__(self, model: Any, tokens: Any):
        super().__init__()
        self.counts = nn.Linear(model.config.text_config.hidden_size, MOST + 1)
        self.places = nn.Linear(model.config.text_config.hidden_size, len(PLACES))
        self.words = {number: word.removeprefix("Ġ") for word, number in tokens.get_vocab().items()}
        self.seen: torch.Tensor | None = None  # in the last forward pass: (B, T, width)
        model.model.text_model.layers[FOUND_AFTER].register_forward_hook(self._keep)

    def _keep(self, _layer: nn.Module, _inputs: object, output: torch.Tensor | tuple) -> None:
        self.seen = output[0] if isinstance(output, tuple) else output

    def loss(self, ids: torch.Tensor, starts: Sequence[int], scenes: Sequence[Scene]) -> torch.Tensor:
        """Of the last forward pass over tokens (B, T), whose questions end at `starts`."""
        rows, columns, counts, places = [], [], [], []
        for row, (scene, end) in enumerate(zip(scenes, starts, strict=True)):
            said = [self.words[number] for number in ids[row, :end].tolist()]
            for column, things in noun_referents(said, scene):
                rows.append(row)
                columns.append(column)
                counts.append(min(MOST, len(things)))
                only = things[0] if len(things) == 1 else None
                places.append(PLACES.index(only.place) if isinstance(only, Thing) else IGNORED)
        assert self.seen is not None, "nothing was asked"
        if not rows:
            return self.seen.sum() * 0
        nouns = self.seen[rows, columns]
        loss = F.cross_entropy(self.counts(nouns), torch.tensor(counts))
        where = torch.tensor(places)
        if (where != IGNORED).any():
            loss = loss + F.cross_entropy(self.places(nouns), where, ignore_index=IGNORED)
        return loss


def noun_referents(words: Sequence[str], scene: Scene) -> list[tuple[int, list[Thing | str]]]:
    """(index, what of the scene is meant) of each noun in the words of a question: things, or the ground."""
    found: list[tuple[int, list[Thing | str]]] = []
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        if word == "background" and before in GROUNDS:
            found.append((i, [scene.ground] if before == scene.ground else []))
        elif shape := SINGULAR.get(word):
            color = before if before in COLORS else None
            found.append((i, [t for t in scene.things if t.shape == shape and color in (None, t.color)]))
    return found
