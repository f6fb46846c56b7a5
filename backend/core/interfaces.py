"""The roles as Protocols. `search/` and the trainers use only these.

An implementation declares what it can do: facts in its `capabilities`, and optional methods by a Protocol
(`Critic`, `PreviewReward`, …) that callers check with `isinstance`. Classes of the registry declare their
capabilities on the class, so that they are known before anything is loaded.
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
        """Changes when the same call would give another rewrite; None if the name is enough."""
        ...

    def rewrite(
        self,
        prompts: Sequence[str],
        variants: int = 1,
        seed: int = 0,
        critiques: Sequence[str | None] | None = None,
    ) -> list[list[Rewrite]]:
        """`variants` rewrites of each prompt; `critiques[i]` says what was wrong with an earlier picture.

        The first is the best one and does not depend on the seed; the others are sampled. The same call gives
        the same rewrites, and a prompt's rewrites do not depend on the other prompts. If the output cannot be
        parsed, the rewrite is the user's prompt with `fallback` set.
        """
        ...


class Watcher(Protocol):
    """Looks at x0 previews while rendering and decides which rows continue."""

    steps: frozenset[int]  # the 1-based steps after which `look` is called

    def look(self, step: int, rows: list[int], previews: Tensor) -> list[int]:
        """`previews` (len(rows), H, W, 3) in 0..1 of the rows alive -> the rows (of `rows`) to keep."""
        ...


class Renderer(Protocol):
    """(prompt, seed) jobs -> images. An image does not depend on the other jobs of the batch."""

    name: str
    steps: int
    fingerprint: str  # changes when the same job would give other pixels
    capabilities: RendererCapabilities

    @property
    def model(self) -> Any:
        """What a training may move between devices with `.to`; None if there is no such model here."""
        ...

    def render(
        self,
        jobs: Sequence[Job],
        watcher: Watcher | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> RenderResult:
        """Draw all jobs as one search: a watcher gets all rows alive at once, even if they are computed in
        chunks. `progress(step, steps)` is called after each step and may raise `Interrupted`.

        Either all jobs start from noise, or all start from pictures with the same strength. In the second
        case the first steps are left out, and the others keep their numbers. Raises Unsupported for what its
        `capabilities` exclude.
        """
        ...


class Reward(Protocol):
    """Images and the users' ORIGINAL prompts -> one score per image, independent of the batch."""

    spec: RewardSpec
    capabilities: RewardCapabilities

    @property
    def fingerprint(self) -> str | None:
        """Changes when its scores would change, for example with its weights; None if its name is enough."""
        ...

    @property
    def model(self) -> Any:
        """The nn.Module that a host or a training may move between devices; None if there is none here."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """`images` (B, H, W, 3) in 0..1, `prompts` of length B -> B finite scores.

        A failure raises; it never becomes a score of 0.
        """
        ...


class TextReward(Protocol):
    """Rewrites and the users' prompts -> one score per rewrite."""

    spec: RewardSpec

    def score_text(self, rewrites: Sequence[Rewrite], prompts: Sequence[str]) -> list[float]: ...


@runtime_checkable
class Critic(Protocol):
    """A reward that also says in words what is wrong."""

    spec: RewardSpec

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]: ...


@runtime_checkable
class PreviewReward(Protocol):
    """A reward for previews: its scores are P(the picture will come out right), 0..1."""

    spec: RewardSpec

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]: ...

    def clarity(self, images: Tensor, prompts: Sequence[str]) -> list[float] | None:
        """P(clear enough to judge), 0..1 each; None if it does not estimate that."""
        ...


@runtime_checkable
class HasPreviewJudge(Protocol):
    """A reward that has another reward for previews: a vision-language model is asked another question about
    a preview than about a finished picture."""

    def preview_judge(self) -> Reward: ...


@runtime_checkable
class CompositeReward(Protocol):
    """A reward whose scores are computed from those of its parts."""

    spec: RewardSpec

    def parts(self, images: Tensor, prompts: Sequence[str]) -> dict[str, list[float]]:
        """The scores of each part by its name, B each."""
        ...

    def combine(self, parts: Mapping[str, Sequence[float]]) -> list[float]:
        """Its scores, from the result of `parts`."""
        ...


@runtime_checkable
class Managed(Protocol):
    """Holds a model that a host's memory manager may move, such as ComfyUI's."""

    model: Any  # an nn.Module; None if it has none on this machine
    patcher: Any  # the manager's handle on `model`, set by the host; None: no manager moves it
