"""Seeds and shuffles that are reproducible: they depend on their inputs alone."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from functools import lru_cache

from .types import SEED_RANGE


def shuffled_indices(count: int, seed: int, places: Sequence[int]) -> list[int]:
    """For each of `places` in an endless sequence, the index (0 to `count` - 1) at that place.

    The sequence is round after round; each round is all indices, shuffled by (seed, round).
    """
    return [_shuffled_round(count, seed, place // count)[place % count] for place in places]


@lru_cache(maxsize=4)
def _shuffled_round(count: int, seed: int, number: int) -> list[int]:
    return random.Random(f"{seed} {number}").sample(range(count), count)


def seed_of(*parts: object) -> int:
    """A seed, 0 <= seed < 2**63, from a hash of `parts` (JSON values)."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") % SEED_RANGE
