"""Names, read once: which line of the registry makes a thing, of which model, and where it is asked for.

A name is a line of the registry (`shapeworld`, `reprompt`, `image-reward`), a model of a kind (`vlm:FOLDER`,
`prip:FOLDER`), or one behind an address (`chat:MODEL@URL`, `remote:NAME@URL`, `comfyui:FLOW.json@URL`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.registry import RENDERERS, REWARDS, REWRITERS, resolve
from ..core.types import RendererCapabilities, RewardCapabilities, RewriterCapabilities


@dataclass(frozen=True)
class Name:
    """A name that was read and can be one."""

    text: str
    """As it was given."""
    kind: str
    """The line of the registry that makes it."""
    model: str = ""
    """A folder, a hub's name, a file, or a server's own name for it; "" where the kind says it all."""
    url: str = ""
    """Where another process is asked, several addresses with commas; "" where this process does the work."""


class RewriterName(Name):
    """`rewriters.parse_rewriter` reads one."""

    @property
    def capabilities(self) -> RewriterCapabilities:
        return resolve("rewriter", REWRITERS, self.kind).capabilities


class RendererName(Name):
    """`renderers.parse_renderer` reads one."""

    @property
    def capabilities(self) -> RendererCapabilities:
        """Of its class: what a pipeline of diffusers cannot do shows once it is open."""
        return resolve("renderer", RENDERERS, self.kind).capabilities


class RewardName(Name):
    """`rewards.parse_reward` reads one."""

    @property
    def capabilities(self) -> RewardCapabilities:
        made = resolve("reward", REWARDS, self.kind)
        return made.capabilities if isinstance(made, type) else RewardCapabilities()


def split_name(text: str) -> tuple[str, str, str]:
    """(kind, model, address) of KIND:MODEL@URL; "" for what is not there. A model's name may have colons."""
    words, at, rest = text.rpartition("@http")
    kind, colon, model = (words if at else text).partition(":")
    return (kind if colon else "", (model if colon else kind).strip(), f"http{rest}" if at else "")
