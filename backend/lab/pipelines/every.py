"""All tiny pipelines by a short name of each."""

from __future__ import annotations

from .flows import FLOWS
from .known import KNOWN
from .modular import MODULAR
from .older import OLDER
from .recent import RECENT

EVERY = {**KNOWN, **RECENT, **FLOWS, **OLDER, **MODULAR}
SIDE = 32  # pixels of a picture's side
SIDES = {  # where 32 are too few for a pipeline
    "lumina2": 64,
    "kandinsky5": 64,
    "kandinsky3": 64,
    "hunyuan-dit": 64,
    "hunyuan-dit-pag": 64,
    "bria-fibo": 64,
    "lumina": 64,
    "ernie": 64,
    "anima": 64,
}
