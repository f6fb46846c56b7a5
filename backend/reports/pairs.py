"""The page of a preference store, to look through pairs and strike bad ones.

It needs no server: it saves `strikes.json`, which `reprise preferences strike` reads into the store.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..preferences.store import Pair, PairPicture, PairText, RewritePair, Store
from ..storage.outputs import write_made
from .added_words import mark_added_words
from .build import number_text
from .pictures import inline_picture, picture_path
from .templates import template

SIDE = 320  # pixels of a picture
AnyPair = Pair | RewritePair


def write_pairs(path: Path, store: Store, most: int) -> int:
    """Write the page of the `most` closest pairs of pictures and rewrites; returns how many it shows.

    In the store's folder it shows the store's files, elsewhere it holds their pictures itself. Raises
    BadInput for a file at `path` that is no earlier page of this store.
    """
    recorded: list[AnyPair] = [*store.all_pairs(), *store.all_rewrites()]
    pairs = closest_pairs(recorded, most)
    beside = path.parent.resolve() == store.folder.resolve()
    page = render_pairs(store, pairs, len({pair.id for pair in recorded}), beside)
    write_made(store.folder, path, page)
    return len(pairs)


def closest_pairs(pairs: Sequence[AnyPair], most: int) -> list[AnyPair]:
    """The `most` pairs of the smallest margin, smallest first: those most likely to be wrong.

    A pair that several rewards found is returned once.
    """
    found: dict[str, AnyPair] = {}
    for pair in sorted(pairs, key=lambda pair: pair.margin):
        found.setdefault(pair.id, pair)
    return list(found.values())[:most]


def render_pairs(store: Store, pairs: Sequence[AnyPair], recorded: int, beside: bool = False) -> str:
    """The page as HTML; `beside` if it will lie in the store's folder."""
    struck = store.struck_ids()
    return template("pairs.html.jinja").render(
        name=store.folder.resolve().name,
        recorded=recorded,
        folder=shlex.quote(str(store.folder)),
        beside=beside,
        pairs=[_view(store, pair, pair.id in struck, beside) for pair in pairs],
    )


def _view(store: Store, pair: AnyPair, struck: bool, beside: bool) -> dict[str, Any]:
    sides = (
        [_text(pair.prompt, text) for text in (pair.chosen, pair.rejected)]
        if isinstance(pair, RewritePair)
        else [_side(store, pair, side, beside) for side in (pair.chosen, pair.rejected)]
    )
    return {
        "id": pair.id,
        "struck": struck,
        "prompt": pair.prompt,
        "margin": number_text(pair.margin),
        "reward": pair.reward,
        "run": pair.run,
        "written": isinstance(pair, RewritePair),
        "sides": sides,
    }


def _side(store: Store, pair: Pair, side: PairPicture, beside: bool) -> dict[str, Any]:
    path = store.image_path(side.image)
    name = Path(os.path.relpath(path, store.folder)).as_posix()
    if beside:
        picture = f"./{quote(name)}" if picture_path(store.folder, name) else None
    else:
        picture = inline_picture(store.folder, name, SIDE)
    return {
        "picture": picture,
        "score": number_text(side.score),
        "seed": side.seed,
        "words": mark_added_words(pair.prompt, side.drawn_as),
        "scores": {name: number_text(value) for name, value in side.scores.items() if name != pair.reward},
    }


def _text(prompt: str, text: PairText) -> dict[str, Any]:
    return {
        "score": number_text(text.score),
        "seed": None,
        "words": mark_added_words(prompt, text.rewrite),
        "scores": {},
        "reason": text.reason,
        "pictures": text.pictures,
    }
