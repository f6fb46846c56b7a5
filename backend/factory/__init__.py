"""Names -> rewriters, renderers, rewards and trainers, for command line, trainings, nodes and server alike.
Nothing else turns a name into one of these.

`parse_…` reads a name and raises where it cannot be one, before anything is loaded or asked; `open_…` makes
what it names. Every place takes every kind of name, or says which it does not take and why.
"""

from ..core.registry import RENDERERS, REWARDS, REWRITERS, TEXT_REWARDS, TRAINERS
from .names import RendererName, RewardName, RewriterName
from .renderers import (
    DEFAULT_RENDERER,
    check_renderer,
    open_renderer,
    parse_pipeline,
    parse_renderer,
    renderer_settings,
    source_of,
)
from .rewards import (
    DEFAULT_JUDGE,
    check_differentiable,
    check_roles,
    open_judge,
    open_reward,
    open_rewards,
    parse_judge,
    parse_reward,
    parse_weights,
    picture_rewards,
    reward_mark,
    reward_spec,
)
from .rewriters import DEFAULT_REWRITER, open_rewriter, parse_rewriter
from .trainers import Trainer, find_trainer

__all__ = [
    "DEFAULT_JUDGE",
    "DEFAULT_RENDERER",
    "DEFAULT_REWRITER",
    "RENDERERS",
    "REWARDS",
    "REWRITERS",
    "TEXT_REWARDS",
    "TRAINERS",
    "RendererName",
    "RewardName",
    "RewriterName",
    "Trainer",
    "check_differentiable",
    "check_renderer",
    "check_roles",
    "find_trainer",
    "open_judge",
    "open_renderer",
    "open_reward",
    "open_rewards",
    "open_rewriter",
    "parse_judge",
    "parse_pipeline",
    "parse_renderer",
    "parse_reward",
    "parse_rewriter",
    "parse_weights",
    "picture_rewards",
    "renderer_settings",
    "source_of",
    "reward_mark",
    "reward_spec",
]
