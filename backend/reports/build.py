"""What a page shows of a rendered prompt: its pictures, scores and costs.

The template only lays out what is computed here. Jinja escapes all text.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from ..storage.records import CandidateRecord, Record
from .added_words import mark_added_words

WINNER_SIDE, WALL_SIDE = 768, 384  # pixels that a picture needs on the page
Show = Callable[[str | None, int], str | None]
"""The file that a record names, and pixels -> what the page's `src` says, or None where there is none."""


def prompt_view(record: Record, show: Show) -> dict[str, Any]:
    """The data that the template shows of one prompt."""
    winner = record.winner
    letters = {r.prompt: chr(ord("A") + i % 26) for i, r in reversed(list(enumerate(record.rewrites)))}
    drawn = next((r for r in record.rewrites if r.prompt == winner.prompt), None)
    images: dict[int | None, str | None] = {c.index: c.image for c in record.candidates}
    scale = _Scale(record)
    return {
        "prompt": record.prompt,
        "winner": {**_candidate(show, winner, scale, letters, WINNER_SIDE), "drawn_as": winner.prompt},
        "reason": drawn.reason if drawn else "",
        "rewriter": drawn.rewriter if drawn else "",
        "fallback": drawn.fallback if drawn else None,
        "words": mark_added_words(record.prompt, winner.prompt),
        "rewrites": [
            {
                "letter": letters[r.prompt],
                "words": mark_added_words(record.prompt, r.prompt),
                "reason": r.reason,
                "fallback": r.fallback,
            }
            for r in {r.prompt: r for r in reversed(record.rewrites)}.values()
        ][::-1],
        "walls": _walls(show, record, scale, letters),
        "rounds": [
            {
                "round": r.round,
                "right": r.verdict == "yes",
                "critique": r.critique,
                "kept": r.candidate == record.best,
                "score": number_text(r.score),
                "picture": show(images.get(r.candidate), WALL_SIDE),
            }
            for r in record.reflection
        ],
        "cost": _cost(record),
        "command": render_command(record),
        "settings": {k: v for k, v in record.settings.items() if v not in (None, {}, [])},
        "versions": record.versions,
    }


def render_command(record: Record) -> str:
    """The command line that draws this record's pictures again."""
    words = ["reprise", "render", record.prompt]
    for name in (
        "renderer",
        "lora",
        "rewriter",
        "best_of",
        "variants",
        "prune",
        "previews",
        "reflect",
        "corrector",
        "correction",
        "strength",
        "judge",
        "seed",
        "steps",
    ):
        value = record.settings.get(name)
        if value is not None:
            words += ["--" + name.replace("_", "-"), str(value)]
    for name, weight in (record.settings.get("rewards") or {}).items():
        words += ["--reward", f"{name}={weight:g}"]
    # After "--", a prompt that starts with a dash is not read as an option.
    if record.prompt.startswith("-"):
        words = [*words[:2], *words[3:], "--", record.prompt]
    return shlex.join(words)


def number_text(value: float | None) -> str:
    """A score as text, with about three digits; "–" for None."""
    if value is None:
        return "–"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


class _Scale:
    """Maps scores to widths of bars: from 0 to 1 if all scores are in that range, else from least to most."""

    def __init__(self, record: Record):
        values = [c.score for c in record.candidates if c.score is not None]
        if not record.settings.get("previews"):  # another judge of previews may have another range
            values += [v for c in record.candidates for v in c.preview_scores.values()]
        inside = all(0 <= v <= 1 for v in values)
        self.low, self.high = (0.0, 1.0) if inside or not values else (min(values), max(values))
        finished = [c.score for c in record.candidates if c.score is not None]
        best = record.winner.score
        self.higher = best is None or not finished or best >= max(finished)

    def percent(self, value: float | None) -> float:
        if value is None or self.high == self.low:
            return 0.0
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share if self.higher else 1 - share)), 1)

    def order(self, candidate: CandidateRecord, best: int) -> tuple:
        """Sorting key: the winner, then finished candidates by score, then pruned ones, the latest first."""
        sign = -1 if self.higher else 1
        last = candidate.preview_scores[max(candidate.preview_scores)] if candidate.preview_scores else 0.0
        score = candidate.score if candidate.score is not None else last
        return (candidate.index != best, -(candidate.pruned_at or 10**9), sign * score, candidate.index)


def _walls(show: Show, record: Record, scale: _Scale, letters: dict[str, str]) -> list[dict[str, Any]]:
    """The candidates of each round, sorted by `_Scale.order`."""
    walls = []
    for number in sorted({c.round for c in record.candidates}):
        of_round = [c for c in record.candidates if c.round == number]
        ranked = sorted(of_round, key=lambda c: scale.order(c, record.best))
        stopped = sum(c.pruned_at is not None for c in of_round)
        walls.append(
            {
                "round": number,
                "count": len(of_round),
                "stopped": stopped,
                "alive": _alive(of_round, record.settings.get("steps")),
                "cards": [
                    {**_candidate(show, c, scale, letters, WALL_SIDE), "best": c.index == record.best}
                    for c in ranked
                ],
            }
        )
    return walls


def _alive(candidates: list[CandidateRecord], steps: Any) -> list[dict[str, Any]]:
    """How many candidates each denoising step computed; empty without pruning."""
    if not isinstance(steps, int) or all(c.pruned_at is None for c in candidates):
        return []
    stairs = []
    for step in range(1, steps + 1):
        rows = sum(c.pruned_at is None or c.pruned_at >= step for c in candidates)
        stairs.append({"step": step, "rows": rows, "percent": round(100 * rows / len(candidates), 1)})
    return stairs


def _candidate(show: Show, c: CandidateRecord, scale: _Scale, letters: dict[str, str], side: int) -> dict:
    last = max(c.preview_scores, default=None)
    preview = c.preview_scores[last] if last is not None else None
    shown = c.score if c.score is not None else preview
    return {
        "index": c.index,
        "seed": c.seed,
        "letter": letters.get(c.prompt, ""),
        "score": number_text(shown),
        "percent": scale.percent(shown),
        "pruned_at": c.pruned_at,
        "scores": {name: number_text(value) for name, value in c.scores.items()},
        "previews": {
            step: number_text(c.preview_scores[step]) if step in c.preview_scores else "not clear"
            for step in sorted({*c.preview_scores, *c.preview_clarity})
        },
        "picture": show(c.image or c.preview, side),
    }


def _cost(record: Record) -> dict[str, Any]:
    cost = record.cost
    full = max(1, cost.denoiser_rows_full)
    total = cost.seconds.get("total") or sum(cost.seconds.values()) or 1.0
    named = {k: v for k, v in cost.seconds.items() if k != "total"}
    rest = max(0.0, total - sum(named.values()))
    parts = [(k, v) for k, v in [*named.items(), ("other", rest)] if v / total > 0.005]
    return {
        "rows": cost.denoiser_rows,
        "full": cost.denoiser_rows_full,
        "percent": round(100 * cost.denoiser_rows / full, 1),
        "judge_calls": cost.judge_calls,
        "seconds": f"{total:.1f}",
        "parts": [{"name": k, "seconds": f"{v:.1f}", "percent": round(100 * v / total, 1)} for k, v in parts],
    }
