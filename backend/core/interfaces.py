"""The roles as Protocols. `search/` and the trainers know these and nothing else.

What an implementation can do is declared: facts in its `capabilities`, methods that not all have in a
Protocol of their own (`Critic`, `PreviewReward`, …), which `isinstance` asks for. A class of the registry
declares its capabilities on the class, so that they are known before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .types import (
    Job,
    RendererCapabilities,
    RenderResult,
    RewardCapabilities,
    RewardSpec,
    Rewrite,
    RewriterCapabilities,
    Verdict,
)

if TYPE_CHECKING:
    from torch import Tensor


class Rewriter(Protocol):
    """User prompts -> rewrites."""

    name: str
    capabilities: RewriterCapabilities

    @property
    def fingerprint(self) -> str | None:
        """Changes when the same call would give other words; None where the name says it all."""
        ...

    def rewrite(
        self,
        prompts: Sequence[str],
        variants: int = 1,
        seed: int = 0,
        critiques: Sequence[str | None] | None = None,
    ) -> list[list[Rewrite]]:
        """`variants` rewrites of each prompt; `critiques[i]` says what was wrong with an earlier picture.

        The first is the best single one, whatever the seed; the others are sampled. The same call gives
        the same rewrites; a prompt's rewrites do not depend on its neighbours.
        Output that cannot be parsed becomes the user's prompt with `fallback` set.
        """
        ...


class Watcher(Protocol):
    """Looks at x0 previews while rendering and says which rows go on."""

    steps: frozenset[int]  # the 1-based steps after which it wants to look

    def look(self, step: int, rows: list[int], previews: Tensor) -> list[int]:
        """`previews` (len(rows), H, W, 3) in 0..1 of the rows alive -> the rows (of `rows`) to keep."""
        ...


class Renderer(Protocol):
    """(prompt, seed) jobs -> images, each from its own noise, whatever it is batched with."""

    name: str
    steps: int
    fingerprint: str  # changes when the same job would give other pixels
    capabilities: RendererCapabilities

    @property
    def model(self) -> Any:
        """What a training may move between devices with `.to`; None where nothing lies here, or what lies
        here moves by itself."""
        ...

    def render(
        self,
        jobs: Sequence[Job],
        watcher: Watcher | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> RenderResult:
        """Draw all jobs as one search: a watcher sees all rows alive at once, also where they are
        evaluated in chunks. `progress(step, steps)` is called after each step and may raise
        `Interrupted`. Jobs start from noise, or all from pictures with one strength: their first steps are
        then left out, and the others keep their numbers. Raises Unsupported for what its `capabilities`
        exclude."""
        ...


class Reward(Protocol):
    """Images and the users' ORIGINAL prompts -> one score per image, independent of the batch."""

    spec: RewardSpec
    capabilities: RewardCapabilities

    @property
    def fingerprint(self) -> str | None:
        """What decides its scores, such as its weights; None where the name of its spec says it all."""
        ...

    @property
    def model(self) -> Any:
        """The nn.Module that a host or a training may move between devices; None where there is none here."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """`images` (B, H, W, 3) in 0..1, `prompts` of length B -> B finite scores. Raises, never 0."""
        ...


class TextReward(Protocol):
    """Rewrites and the users' prompts -> one score per rewrite."""

    spec: RewardSpec

    def score_text(self, rewrites: Sequence[Rewrite], prompts: Sequence[str]) -> list[float]: ...


@runtime_checkable
class Critic(Protocol):
    """A reward that can also say in words what is wrong."""

    spec: RewardSpec

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]: ...


@runtime_checkable
class PreviewReward(Protocol):
    """A reward for pictures that are still being drawn: its scores are P(it will come out right), 0..1."""

    spec: RewardSpec

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]: ...

    def clarity(self, images: Tensor, prompts: Sequence[str]) -> list[float] | None:
        """P(clear enough to judge), 0..1 each; None where it cannot tell."""
        ...


@runtime_checkable
class HasPreviewJudge(Protocol):
    """A reward in whose place another one looks at previews: a vision-language model asks about a preview in
    other words than about a finished picture."""

    def preview_judge(self) -> Reward: ...


@runtime_checkable
class CompositeReward(Protocol):
    """A reward whose scores follow from those of its parts."""

    spec: RewardSpec

    def parts(self, images: Tensor, prompts: Sequence[str]) -> dict[str, list[float]]:
        """The parts' own scores by their names, B each."""
        ...

    def combine(self, parts: Mapping[str, Sequence[float]]) -> list[float]:
        """Its scores, from what `parts` gave."""
        ...


@runtime_checkable
class Managed(Protocol):
    """Holds a model that a host's memory manager may move, such as ComfyUI's."""

    model: Any  # an nn.Module; None where it has none on this machine
    patcher: Any  # the manager's own handle on `model`, which the host sets; None: no one else moves it
