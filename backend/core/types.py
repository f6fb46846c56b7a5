"""Data that is passed between rooms: plain dataclasses, with torch tensors as the only library type.

Images are float tensors (B, H, W, 3) in 0..1 everywhere, as in ComfyUI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

SEED_RANGE = 2**63  # seeds are 0 <= seed < 2**63, the range of torch generators and of ComfyUI


@dataclass(frozen=True)
class Rewrite:
    """A rewriter's answer. If it could not be parsed, `prompt` is the user's own and `fallback` says why."""

    reason: str
    prompt: str
    rewriter: str
    fallback: str | None = None


@dataclass(frozen=True, eq=False)
class InitImage:
    """A picture (H, W, 3) in 0..1 to start from, and how strongly it is drawn over.

    `strength` is above 0 and at most 1: diffusers' strength, ComfyUI's denoise. At 1 little or nothing of the
    picture is left.
    """

    image: Tensor
    strength: float


def check_strength(strength: float, steps: int) -> None:
    """Raises BadInput for a strength that is outside 0 to 1, or so low that none of `steps` is drawn."""
    if not 0 < strength <= 1 or int(steps * strength) < 1:
        raise BadInput(f"expected a strength of {1 / steps:.2g} (one of {steps} steps) to 1, got {strength}")


@dataclass(frozen=True)
class Job:
    """One picture to draw: its prompt, its own seed, and optionally a picture to start from."""

    prompt: str
    seed: int
    init: InitImage | None = None


@dataclass
class RenderResult:
    """A renderer's pictures, in the order of its jobs, and what they cost.

    `images[i]` is (H, W, 3) in 0..1, or None if job i was pruned; `pruned_at[i]` is then the 1-based step
    after which its row was no longer evaluated. `denoiser_rows` counts the rows of all denoiser calls: one
    candidate at one step is 1 row, or 2 with classifier-free guidance. `denoiser_rows_full` is the count
    without pruning and without the cache.
    """

    images: list[Tensor | None]
    pruned_at: list[int | None]
    denoiser_rows: int
    denoiser_rows_full: int


@dataclass(frozen=True)
class RendererCapabilities:
    """What a renderer can do, and which settings its constructor takes."""

    previews: bool = True  # shows x0 previews to a watcher, so that candidates can be pruned
    no_previews: str = ""  # why it shows none, as half a sentence
    image_to_image: bool = False  # jobs may start from pictures
    elsewhere: bool = False  # another process draws: this machine's GPU is free meanwhile
    weights: bool = False  # has weights on this machine: takes `device`
    keeps_pictures: bool = False  # takes a `cache` and stores its pictures there
    shapeworld: bool = False  # draws ShapeWorld, which the embedded rewriter and the embedded judge know
    settings: frozenset[str] = frozenset()  # fields of `RendererSettings` that it takes
    fixed: Mapping[str, int] = field(default_factory=dict)  # fields that have one value only


@dataclass(frozen=True)
class RewriterCapabilities:
    """What a rewriter can do."""

    reads_critiques: bool = True  # a critique changes the words; False: it is ignored
    reasons: bool = True  # a rewrite comes with the reasoning behind it
    describes: bool = False  # `describe` writes the prompt of a picture
    elsewhere: bool = False  # another process writes: a call waits for a server
    weights: bool = False  # has weights on this machine: takes `device` and `dtype`


@dataclass(frozen=True)
class RewardCapabilities:
    """What a reward can do. Whether it criticises or scores previews is declared by the Protocols `Critic`
    and `PreviewReward`."""

    gradient: bool = False  # `prepare` and `rate` give scores with a gradient through the pixels
    weights: bool = False  # has weights on this machine: takes `device` and `dtype`


@dataclass(frozen=True)
class RewardSpec:
    """A reward's name, and the range and direction of its scores.

    `low` and `high` are the usual range, not hard bounds.
    """

    name: str
    low: float
    high: float
    higher_is_better: bool = True
    reads: str = "images"  # "images" or "rewrites"


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one picture: satisfied, or in words what is wrong, for a rewriter to correct.

    `faults` are short phrases, one for each fault; `critique` joins them into a sentence.
    """

    satisfied: bool
    critique: str
    faults: tuple[str, ...] = ()


@dataclass
class Candidate:
    """One picture of a search, finished or pruned, with its scores."""

    index: int
    seed: int
    prompt: str
    scores: dict[str, float] = field(default_factory=dict)
    score: float | None = None  # the score that selects; None before judging, and of a pruned candidate
    pruned_at: int | None = None
    image: Tensor | None = None  # (H, W, 3) in 0..1
    preview_scores: dict[int, float] = field(default_factory=dict)  # step -> score of its x0 preview
    preview_clarity: dict[int, float] = field(default_factory=dict)  # step -> P(that preview is clear)
    path: str | None = None
    preview: Tensor | None = None  # (H, W, 3) in 0..1: the last x0 preview of a pruned candidate
    preview_path: str | None = None
    round: int = 0  # 0: the search; 1, 2, …: the reflection round that drew it


@dataclass
class Cost:
    """What a search cost. Costs can be added with `+=`."""

    denoiser_rows: int = 0
    denoiser_rows_full: int = 0
    judge_calls: int = 0  # images judged, previews included
    seconds: dict[str, float] = field(default_factory=dict)

    def add_seconds(self, name: str, value: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + value

    def __iadd__(self, other: Cost) -> Cost:
        self.denoiser_rows += other.denoiser_rows
        self.denoiser_rows_full += other.denoiser_rows_full
        self.judge_calls += other.judge_calls
        for name, value in other.seconds.items():
            self.add_seconds(name, value)
        return self


@dataclass
class ReflectionRound:
    """One round of reflection. Round 0 is the verdict on the best picture of the search."""

    round: int
    verdict: str  # "yes" or "no": does the picture show what the user asked for
    critique: str  # what the judge found wrong; empty for "yes"
    prompt: str  # the prompt that drew the picture judged in this round
    score: float
    candidate: int  # index of that picture


@dataclass
class Outcome:
    """Everything that a search made for one user prompt: the content of `record.json` and of the page."""

    prompt: str
    rewrites: list[Rewrite]
    candidates: list[Candidate]  # of all rounds; `candidates[i].index == i`
    best: int
    reflection: list[ReflectionRound]
    cost: Cost
