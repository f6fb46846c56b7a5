"""What crosses a border between roles: plain dataclasses, no library types but torch tensors.

Images are float tensors (B, H, W, 3) in 0..1 everywhere, as in ComfyUI.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SEED_RANGE = 2**63  # seeds are 0 <= seed < 2**63, what torch generators and ComfyUI take


@dataclass(frozen=True)
class Rewrite:
    """A rewriter's answer. `fallback` says why the user's own prompt stands in, else None."""

    reason: str
    prompt: str
    rewriter: str
    fallback: str | None = None


@dataclass(frozen=True, eq=False)
class InitImage:
    """A picture to start from: (H, W, 3) in 0..1, and the `strength` of what is drawn over it, above 0 to 1:
    diffusers' strength, ComfyUI's denoise. At 1 little or nothing of it is left."""

    image: Tensor
    strength: float


@dataclass(frozen=True)
class Job:
    """One picture to draw: its prompt, its own seed, and what it starts from if not from noise alone."""

    prompt: str
    seed: int
    init: InitImage | None = None


@dataclass
class RenderResult:
    """What a renderer made of its jobs, in their order.

    `images[i]` is (H, W, 3) in 0..1, or None where job i was pruned; `pruned_at[i]` is then the step
    (1-based) after which its row was no longer evaluated. `denoiser_rows` counts rows of denoiser
    evaluations: one candidate at one step without classifier-free guidance is 1, with it 2.
    `denoiser_rows_full` is the count had nothing been pruned or found in the cache.
    """

    images: list[Tensor | None]
    pruned_at: list[int | None]
    denoiser_rows: int
    denoiser_rows_full: int


@dataclass(frozen=True)
class RewardSpec:
    """What a reward's numbers mean. `low` and `high` are the usual range, not hard bounds."""

    name: str
    low: float
    high: float
    higher_is_better: bool = True
    reads: str = "images"  # "images" or "rewrites"


@dataclass(frozen=True)
class Verdict:
    """A judge's view of one picture: satisfied, or what is wrong in words a rewriter can use.

    `faults` are short phrases, one per thing that is wrong; `critique` joins them into a sentence.
    """

    satisfied: bool
    critique: str
    faults: tuple[str, ...] = ()


@dataclass
class Candidate:
    """One drawn (or pruned) picture of a search with its scores."""

    index: int
    seed: int
    prompt: str
    scores: dict[str, float] = field(default_factory=dict)
    score: float | None = None  # what selection looks at; None only before judging
    pruned_at: int | None = None
    image: Tensor | None = None  # (H, W, 3) in 0..1
    preview_scores: dict[int, float] = field(default_factory=dict)  # step -> score of its x0 preview
    preview_clarity: dict[int, float] = field(default_factory=dict)  # step -> P(that preview is clear)
    path: str | None = None
    preview: Tensor | None = None  # where it was pruned: the x0 preview that the judge saw last
    preview_path: str | None = None
    round: int = 0  # 0: the search; 1, 2, …: the reflection round that drew it


@dataclass
class Cost:
    """What a search spent; adds up."""

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
    """One round of reflection. Round 0 is the verdict on the search's own best picture."""

    round: int
    verdict: str  # "yes" or "no": does the picture show what was asked
    critique: str  # what the judge found wrong; empty for "yes"
    prompt: str  # the prompt that drew the picture judged in this round
    score: float
    candidate: int  # index of that picture


@dataclass
class Outcome:
    """All that came of one user prompt: what `record.json` and the page are made from."""

    prompt: str
    rewrites: list[Rewrite]
    candidates: list[Candidate]  # of all rounds; `candidates[i].index == i`
    best: int
    reflection: list[ReflectionRound]
    cost: Cost
