"""The tokenizers of the embedded refiner: what its encoder reads with, and what its decoder writes with.

Every word of the world, styles too, is one token of either; any other text falls apart into letters or bytes.
The networks are "shapeworld" of `rewriters/prip/presets.py`, with random weights; `reprise train` with
prip-decoder, prip-encoder and ppo trains them (`training/*/configs`), on what `reprise data users` writes
and `reprise data pictures` draws.
"""

from __future__ import annotations
