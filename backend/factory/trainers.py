"""A name -> a trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..core.config import Config
from ..core.registry import TRAINERS, resolve


@dataclass(frozen=True)
class Trainer:
    """What `reprise train NAME` runs: `train(config, run, resume=…, log=…)` gives the folder that it made."""

    name: str
    config: type[Config]
    train: Callable[..., Any]
    several: bool
    """Whether several processes may share the work."""


def find_trainer(name: str) -> Trainer:
    """Raises UnknownName with the near match."""
    train = resolve("trainer", TRAINERS, name)
    module = import_module(train.__module__)
    return Trainer(name, module.CONFIG, train, module.SEVERAL)
