"""Rounds of Diffusion-DPO: the renderer draws with its newest LoRA, and learns from its own pictures.

A round's adapter begins as that of the round before, of the same rank, and is compared with it: one file of
one rank comes out, however many rounds there were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import save_config
from ..errors import RewardFailed
from ..interfaces import Renderer
from ..preferences.pairing import Group, Mined, Picture
from ..preferences.store import Store
from ..runs import write_whole
from ..types import Job
from .renderers import open_renderer
from .rollouts import seed_of
from .rounds import BaseRounds, RendererRounds, let_go, refuse_text
from .studio import Judged
from .watching import SHOWN

if TYPE_CHECKING:
    from torch import Tensor

    from .diffusion_dpo import DiffusionDpoConfig


class Rounds(BaseRounds):
    def __init__(self, config: DiffusionDpoConfig, rounds: RendererRounds, run: Path,
                 log: Callable[[str], None]):  # fmt: skip
        super().__init__(rounds, run, config.seed, log)
        self.config, self.rounds = config, rounds
        refuse_text(self.rewards)
        self.opened: tuple[Path | None, Renderer] | None = None
        if not self.of(1).exists():
            self.renderer(None)  # settings that it does not have are refused before anything is drawn

    def renderer(self, newest: Path | None) -> Renderer:
        """The one that is trained, with a round's LoRA or the one to start from; it evaluates a round and
        draws the next. What it is not told it does as it is trained."""
        if self.opened is None or self.opened[0] != newest:
            self.opened = None
            let_go()
            settings, config = self.rounds.renderer, self.config
            shared = {name: getattr(config, name) for name in ("size", "guidance", "max_sequence_length")
                      if getattr(settings, name) is None}  # fmt: skip
            changes = {"name": config.model, "lora": _file(newest) if newest else config.start}
            renderer = open_renderer(settings.model_copy(update=shared | changes))
            self.opened = newest, renderer
        return self.opened[1]

    def gather(self, number: int, newest: Path | None) -> dict[str, float]:
        asked, count = self.asked(number), self.rounds.images
        each = max(1, self.rounds.renderer.batch // count)  # prompts that are drawn and recorded together
        rows = self.journal(number, each)
        if len(rows) < len(asked):
            with self.at_work(self.renderer(newest)) as studio:
                for start in range(len(rows), len(asked), each):
                    part = asked[start : start + each]
                    jobs = [Job(one.prompt, seed_of(self.seed, "draw", place, i))
                            for place, one in part for i in range(count)]  # fmt: skip
                    meanings = [one.meaning for _, one in part for _ in range(count)]
                    seen = [whole(view) for view in studio.look(jobs, meanings)]
                    fresh = [
                        {"prompt": one.prompt, "judged_as": one.judged_as or None,
                         "seeds": [job.seed for job in jobs[i * count : (i + 1) * count]],
                         "pictures": [view.picture for view in seen[i * count : (i + 1) * count]],
                         "scores": [view.scores for view in seen[i * count : (i + 1) * count]]}
                        for i, (_, one) in enumerate(part)
                    ]  # fmt: skip
                    self.record(number, fresh)
                    rows += fresh
                    self.log(f"round {number}: drew {len(rows)} of {len(asked)} prompts")
        mined = Mined(Store(self.of(number) / "preferences", create=True), "drawn", self.config.margin,
                      self.rounds.pairs)  # fmt: skip
        for row in rows:
            mined.take(self._group(row, number))
        mined.store.add(mined.pairs)
        scores = [self.mixed(one) for row in rows for one in row["scores"]]
        return {"prompts": len(rows), "pairs": len(mined.pairs), "ties": mined.counts["ties"],
                "gone": mined.counts["gone"], "reward": sum(scores) / len(scores)}  # fmt: skip

    def learn(self, number: int, newest: Path | None) -> Path:
        from .diffusion_dpo_loop import Loop

        folder, self.opened = self.of(number), None
        let_go()
        config = self.config.model_copy(update={
            "rounds": None, "preferences": folder / "preferences",
            "start": _file(newest) if newest else self.config.start,
        })  # fmt: skip
        write_whole(folder / "config.yaml", save_config(config))
        loop = Loop(config, folder, True, lambda line: self.log(f"round {number}: {line}"))
        return loop.run()

    def evaluate(self, newest: Path | None) -> tuple[dict[str, float], list[dict[str, Any]]]:
        (asked,), count = self.sets.values(), self.rounds.eval_images
        jobs = [Job(one.prompt, seed_of("evaluate", i, j)) for i, one in enumerate(asked)
                for j in range(count)]  # fmt: skip
        meanings = [one.meaning for one in asked for _ in range(count)]
        with self.at_work(self.renderer(newest)) as studio:
            seen = [whole(view) for view in studio.look(jobs, meanings)]
        figures = {f"held-out/{name}": sum(view.scores[name] for view in seen) / len(seen)
                   for name in self.looking}  # fmt: skip
        shown = sorted({i * len(asked) // SHOWN for i in range(SHOWN)})
        samples = [{"prompt": asked[i].prompt, "reason": "", "rewrite": asked[i].prompt, "fallback": None,
                    "picture": seen[i * count].picture, "scores": seen[i * count].scores}
                   for i in shown]  # fmt: skip
        return figures, samples

    def _group(self, row: Mapping[str, Any], number: int) -> Group:
        """One prompt's pictures, by the rewards that count."""

        def load(key: str) -> Tensor | None:
            found = self.cache.get_image(key)
            return found[0] if found else None

        pictures = [
            Picture(lambda key=key: load(key), row["prompt"], self.mixed(scores), seed, scores)
            for key, seed, scores in zip(row["pictures"], row["seeds"], row["scores"], strict=True)
        ]
        return Group(row["judged_as"] or row["prompt"], pictures, "+".join(self.rounds.rewards), True, 1.0,
                     "round", str(number), self.config.model)  # fmt: skip


def whole(view: Judged) -> Judged:
    """A picture that every reward has scored. Raises RewardFailed with the reward's name."""
    for name, reason in view.failed.items():
        raise RewardFailed(name, f"{reason}; nothing is lost, --resume goes on")
    return view


def _file(final: Path) -> Path:
    (file,) = final.glob("*.safetensors")
    return file
