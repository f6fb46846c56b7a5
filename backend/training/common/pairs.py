"""Pairs of a preference store, as trainings use them; and which of them a run started with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ...core.errors import BadInput
from ...preferences.store import Pair, RewritePair, Store, canonical_reward_name
from ...storage.files import read_json, write_whole
from .data import MAX_LOST

P = TypeVar("P", Pair, RewritePair)


PAIRS_OF_RUN = Path("checkpoints") / "pairs.json"


class TeachesNothing(BadInput):
    """With these settings a training can use none of the pairs; rounds end before such a round."""


def usable_pairs(store: Store, reward: str | None, margin: float, log: Callable[[str], None]) -> list[Pair]:
    """The pairs to learn from. Raises BadInput, with the reason, where none or too few are left."""
    found = pairs_apart_enough(
        store,
        store.all_pairs(),
        reward,
        margin,
        "pairs",
        of="pictures",
        none="mine more: reprise preferences mine RUN",
        ties="lower margin, or mine runs with more candidates",
    )
    whole = [pair for pair in found if all(store.has_image(s.image) for s in (pair.chosen, pair.rejected))]
    lost = len(found) - len(whole)
    if lost > MAX_LOST * len(found):
        raise BadInput(
            f"the pictures of {lost} of {len(found)} pairs are gone from {store.images.folder}; copy the "
            "folder back, or mine the runs again into another --store"
        )
    if lost:
        log(f"left out {lost} of {len(found)} pairs: their pictures are gone")
    return whole


def pairs_apart_enough(
    store: Store,
    recorded: Sequence[P],
    reward: str | None,
    margin: float,
    named: str,
    *,
    of: str,
    none: str,
    ties: str,
) -> list[P]:
    """Those of a store's pairs that a training may use, of `reward` or of all, that are at least `margin`
    apart.

    Raises BadInput where there is none. For its message `named` says what they are, `of` what they pair, and
    `none` and `ties` what to do.
    """
    found = store.usable(recorded, reward)
    if not found:
        raise BadInput(f"{store.folder} has no pairs {_what_is_missing(store, recorded, reward, of, none)}")
    apart = [pair for pair in found if pair.margin >= margin]
    if not apart:
        widest = max(pair.margin for pair in found)
        raise BadInput(
            f"all {len(found)} {named} of {store.folder} are ties: none is {margin:g} apart, the "
            f"widest {widest:.3g}; {ties}"
        )
    return apart


def _what_is_missing(store: Store, recorded: Sequence[P], reward: str | None, of: str, none: str) -> str:
    rewards, reward = sorted({pair.reward for pair in recorded}), reward and canonical_reward_name(reward)
    if reward is not None and rewards and reward not in rewards:
        return f"of {reward!r}, only of {', '.join(rewards)}; {none}"
    ids = {pair.id for pair in recorded if reward in (None, pair.reward)}
    struck = len(ids & store.struck_ids())
    if struck == len(ids):
        return f"of {of} that are not struck; {none}"
    return (
        f"of {of} to learn from: {struck} are struck, and {len(ids) - struck} say the opposite of each "
        f"other; name one of their rewards ({', '.join(rewards)}), or strike one of each two"
    )


def pairs_of_run(run: Path, recorded: Sequence[P]) -> list[P] | None:
    """The pairs that a stopped run started with, even if others were mined or some struck since.

    None before it has started. Raises BadInput where the store no longer has one of them.
    """
    path = run / PAIRS_OF_RUN
    if not path.is_file():
        return None
    known: dict[object, P] = {(pair.id, pair.reward): pair for pair in recorded}
    known |= {pair.id: pair for pair in recorded}  # runs of earlier versions named them by their ids alone
    names = [
        name if isinstance(name, str) else (name[0], canonical_reward_name(name[1]))
        for name in _read_names(path)
    ]
    lost = sum(name not in known for name in names)
    if lost:
        raise BadInput(
            f"{lost} of the {len(names)} pairs that {run} started with are not in the store any "
            "more; bring its old pairs back, or begin another run"
        )
    return [known[name] for name in names]


def _read_names(path: Path) -> list[Any]:
    """The [id, reward] of pairs, or ids alone. Raises BadInput."""
    remedy = "begin another run"
    found = read_json(path, remedy)
    if isinstance(found, list) and all(isinstance(name, str) or _is_name(name) for name in found):
        return found
    raise BadInput(f"{path} does not say which pairs the run started with; {remedy}")


def _is_name(name: Any) -> bool:
    return isinstance(name, list) and len(name) == 2 and all(isinstance(one, str) for one in name)


def keep_pairs_of_run(run: Path, pairs: Sequence[Pair | RewritePair]) -> None:
    """Store which pairs a run starts with, for `pairs_of_run`."""
    names = ",\n".join(json.dumps([pair.id, pair.reward]) for pair in pairs)
    write_whole(run / PAIRS_OF_RUN, f"[\n{names}\n]\n")
