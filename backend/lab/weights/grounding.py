"""Auxiliary losses in the tiny judge's training: what lies where in a picture, and what nouns refer to.

`PatchNaming` classifies the vision tower's tokens by the embeddings of words. `NounGrounding` reads the
language model's states at each noun of a question. Neither is part of the saved model.
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

PATCH, MERGED = 16, 1  # side of a patch in pixels; side of a token in patches
TOKENS = SIZE // PATCH // MERGED  # tokens along a picture's side
FOUND_AFTER, MOST = 2, 4  # the language model's layer whose output is read at nouns; maximum count of things
# The names of a picture's token: colour and shape of the thing whose centre lies in it, else the ground's
# colour and "background"; and its column and row.
NAMES = (
    (*COLORS, *GROUNDS),
    (*SHAPES, "background"),
    ("left", "center", "right"),
    ("top", "middle", "bottom"),
)
SINGULAR = {word: shape for shape in SHAPES for word in (shape, plural(shape))}
IGNORED = -100  # cross_entropy's ignore_index
THING_WEIGHT = 10.0  # weight of a token with a thing, relative to one without
PLACED = 0.1  # weight of the losses for column and row


class PatchNaming(nn.Module):
    """A judge's model, with a loss that names each token of a picture by the embeddings of words."""

    def __init__(self, model: Any, ids: Sequence[Sequence[int]]):
        super().__init__()
        self.model = model
        self.scale = nn.Parameter(torch.ones(len(NAMES)))
        self.ids = [torch.tensor(row) for row in ids]
        self.features: torch.Tensor | None = None  # of the last forward pass: (B, TOKENS², width)
        model.model.connector.register_forward_hook(self._keep)

    def _keep(self, _connector: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        self.features = output

    def forward(self, pictures: torch.Tensor) -> None:
        """Encodes normalised pictures (B, 1, 3, SIZE, SIZE); the hook keeps the features."""
        inner = self.model.model
        inner.connector(inner.vision_model(pixel_values=pictures[:, 0]).last_hidden_state)

    def loss(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Cross-entropy of the names of each token, for the pictures of the last forward pass."""
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
        """Share of the things whose colour and shape are named correctly at their centre's token."""
        answers = torch.tensor([patch_names(scene) for scene in scenes])
        color, shape = (one.argmax(-1) == answers[..., i] for i, one in enumerate(self._logits()[:2]))
        return float((color & shape)[answers[..., 1] < len(SHAPES)].float().mean())

    def _logits(self) -> list[torch.Tensor]:
        assert self.features is not None, "no forward pass yet"
        embeddings = self.model.get_input_embeddings().weight
        return [(self.features @ embeddings[ids].T) * scale for ids, scale in zip(self.ids, self.scale)]


def patch_names(scene: Scene) -> list[list[int]]:
    """The indices in NAMES of each token's names, row by row: (TOKENS², len(NAMES))."""
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
    """uint8 pictures -> pixels (B, 1, 3, SIZE, SIZE) in -1..1, equal to the processor's."""
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return pixels[:, None]


def patch_naming(model: Any, tokens: Any) -> PatchNaming:
    ids = [[tokens(f" {word}", add_special_tokens=False)["input_ids"] for word in row] for row in NAMES]
    assert all(len(one) == 1 for row in ids for one in row), "a name is more than a token"
    return PatchNaming(model, [[one[0] for one in row] for row in ids])


class NounGrounding(nn.Module):
    """A loss on the language model's states at the nouns of a question.

    Targets are the number of such things in the picture, and the place of the only one; for a background,
    whether it is the picture's. A single yes or no says little about how prompt and picture are related.
    """

    def __init__(self, model: Any, tokens: Any):
        super().__init__()
        self.counts = nn.Linear(model.config.text_config.hidden_size, MOST + 1)
        self.places = nn.Linear(model.config.text_config.hidden_size, len(PLACES))
        self.words = {number: word.removeprefix("Ġ") for word, number in tokens.get_vocab().items()}
        self.states: torch.Tensor | None = None  # of the last forward pass: (B, T, width)
        model.model.text_model.layers[FOUND_AFTER].register_forward_hook(self._keep)

    def _keep(self, _layer: nn.Module, _inputs: object, output: torch.Tensor | tuple) -> None:
        self.states = output[0] if isinstance(output, tuple) else output

    def loss(self, ids: torch.Tensor, starts: Sequence[int], scenes: Sequence[Scene]) -> torch.Tensor:
        """The loss for the last forward pass over tokens (B, T), whose questions end at `starts`."""
        rows, columns, counts, places = [], [], [], []
        for row, (scene, end) in enumerate(zip(scenes, starts, strict=True)):
            words = [self.words[number] for number in ids[row, :end].tolist()]
            for column, things in noun_referents(words, scene):
                rows.append(row)
                columns.append(column)
                counts.append(min(MOST, len(things)))
                only = things[0] if len(things) == 1 else None
                places.append(PLACES.index(only.place) if isinstance(only, Thing) else IGNORED)
        assert self.states is not None, "no forward pass yet"
        if not rows:
            return self.states.sum() * 0
        nouns = self.states[rows, columns]
        loss = F.cross_entropy(self.counts(nouns), torch.tensor(counts))
        where = torch.tensor(places)
        if (where != IGNORED).any():
            loss = loss + F.cross_entropy(self.places(nouns), where, ignore_index=IGNORED)
        return loss


def noun_referents(words: Sequence[str], scene: Scene) -> list[tuple[int, list[Thing | str]]]:
    """(index, referents in the scene) of each noun among a question's words: things, or the ground."""
    found: list[tuple[int, list[Thing | str]]] = []
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        if word == "background" and before in GROUNDS:
            found.append((i, [scene.ground] if before == scene.ground else []))
        elif shape := SINGULAR.get(word):
            color = before if before in COLORS else None
            found.append((i, [t for t in scene.things if t.shape == shape and color in (None, t.color)]))
    return found
