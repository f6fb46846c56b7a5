"""Numbers and orders that follow from what they are for."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from functools import lru_cache

from .types import SEED_RANGE


def shuffled_indices(count: int, seed: int, places: Sequence[int]) -> list[int]:
    """Which of `count` things stand at these places: all of them in an order of (seed, round), then again."""
    return [_shuffled_round(count, seed, place // count)[place % count] for place in places]


@lru_cache(maxsize=4)
def _shuffled_round(count: int, seed: int, number: int) -> list[int]:
    return random.Random(f"{seed} {number}").sample(range(count), count)


def seed_of(*parts: object) -> int:
    """A seed from what it is for: 0 <= seed < 2**63."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") % SEED_RANGE
