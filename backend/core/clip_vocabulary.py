"""CLIP's byte-pair vocabulary, for the judges and renderers that read text with CLIP.

Source: openai/CLIP's merges (`vocabularies/`, MIT).
"""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path

MERGES = Path(__file__).parent / "vocabularies" / "clip_merges.txt.gz"


@lru_cache(1)
def clip_vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """(pieces in the order of their ids, merges in order). The start and end tokens' ids come after them."""
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    merges = [(left, right) for left, right in map(str.split, lines)]
    alphabet = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    hidden = [byte for byte in range(256) if byte not in alphabet]
    letters = [chr(byte) for byte in alphabet] + [chr(256 + i) for i in range(len(hidden))]
    return [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)], merges
