"""Rounds of Diffusion-DPO: the renderer draws with its newest LoRA, and learns from its own pictures.

A round's adapter begins as that of the round before, of the same rank, and is compared with it: one file of
one rank comes out, however many rounds there were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.config import save_config
from ...core.errors import RepriseError, RewardFailed
from ...core.interfaces import Renderer
from ...core.seeds import seed_of
from ...core.types import Job
from ...factory import open_renderer, open_reward
from ...preferences.pairing import PairMiner, PictureGroup, ScoredPicture
from ...preferences.store import PAIRS, Store
from ...renderers.diffusers.devices import choose_device, choose_training_dtype
from ...renderers.diffusers.lora_files import changes_something
from ...renderers.diffusers.renderer import DiffusersRenderer
from ...storage.files import free_megabytes, write_whole
from ..common.checkpoints import CannotWrite
from ..rollouts.evaluation import SHOWN
from ..rollouts.prompts import TrainingPrompt
from ..rollouts.scoring import PictureScorer, PictureScores
from ..rounds import Rounds, free_memory
from .config import RendererRounds
from .guidance import check_gradient

if TYPE_CHECKING:
    from torch import Tensor

    from .config import DiffusionDpoConfig


class DiffusionDpoRounds(Rounds):
    def __init__(
        self, config: DiffusionDpoConfig, rounds: RendererRounds, run: Path, log: Callable[[str], None]
    ):
        super().__init__(rounds, run, config.seed, config.device, log)
        self.config, self.rounds = config, rounds
        self.opened: tuple[Path | None, Renderer] | None = None
        if not self.round_folder(1).exists():
            self._check()

    def _check(self) -> None:
        """Refuse settings now that a training would refuse once a round is drawn."""
        from .start import check_possible, trainable

        trainable(self.config)
        if self.config.judge is not None:
            name = self.config.judge.reward
            check_gradient(name, self.rewards.get(name) or open_reward(name, self.device))
        renderer = self.renderer(None)
        assert isinstance(renderer, DiffusersRenderer), "all that can be trained are"
        check_possible(self.config, renderer.pipeline, renderer.family)

    def renderer(self, newest: Path | None) -> Renderer:
        """The one that is trained, with a round's LoRA or the one to start from. It evaluates a round and
        draws the next. Settings that `rounds.renderer` leaves out are those of the training."""
        if self.opened is None or self.opened[0] != newest:
            self.opened = None
            free_memory()
            settings, config = self.rounds.renderer, self.config
            shared = {
                name: getattr(config, name)
                for name in ("size", "guidance", "max_sequence_length")
                if getattr(settings, name) is None
            }
            if settings.dtype == "auto":
                shared["dtype"] = choose_training_dtype(config.dtype, choose_device(config.device))
            # Until a round has moved something its LoRA changes no picture, and a renderer would refuse it.
            file = _file(newest) if newest else None
            lora = (file if changes_something(file) else None) if file else config.start
            changes = {**config.renderer, "lora": [] if lora is None else [str(lora)]}
            renderer = open_renderer(settings.model_copy(update=shared | changes), config.device)
            self.opened = newest, renderer
        return self.opened[1]

    def gather(self, number: int, newest: Path | None) -> dict[str, float]:
        """The pictures of pairs go into the store before they are on record, as the cache deletes old ones. A
        recorded prompt whose pictures are in neither any more is drawn again."""
        prompts, store = (
            self.prompts_of(number),
            Store(self.round_folder(number) / "preferences", create=True),
        )
        # Prompts that are drawn and recorded together.
        each = max(1, self.rounds.renderer.batch // self.rounds.images)
        rows = self.recorded_rows(number, each)
        starts = range(0, len(prompts), each)
        found = {start: self._mined(rows[start : start + each], number, store) for start in starts}
        todo = [start for start in starts if start >= len(rows) or found[start].counts["gone"]]
        if todo:
            with self.open_scorer(self.renderer(newest)) as scorer:
                for start in todo:
                    fresh = self._drawn(scorer, prompts[start : start + each])
                    found[start] = mined = self._mined(fresh, number, store)
                    stored = {
                        side.seed: side.image for pair in mined.pairs for side in (pair.chosen, pair.rejected)
                    }
                    for row in fresh:
                        row["stored"] = {
                            key: stored[seed]
                            for key, seed in zip(row["pictures"], row["seeds"])
                            if seed in stored
                        }
                    again, rows[start : start + each] = start < len(rows), fresh
                    self.record(number, rows if again else fresh, replace=again)
                    self.log(
                        f"round {number}: drew {len(rows)} of {len(prompts)} prompts"
                        + (f", {len(fresh)} of them again" if again else "")
                    )
        pairs = [pair for mined in found.values() for pair in mined.pairs]
        (store.folder / PAIRS).unlink(missing_ok=True)  # of an attempt that had lost some: the order counts
        store.add(pairs)
        scores = [self.mixed_reward(one) for row in rows for one in row["scores"]]
        left_out = {
            name: sum(mined.counts[name] for mined in found.values()) for name in ("ties", "alone", "gone")
        }
        return {"prompts": len(rows), "pairs": len(pairs), **left_out, "reward": sum(scores) / len(scores)}

    def _drawn(
        self, scorer: PictureScorer, part: Sequence[tuple[int, TrainingPrompt]]
    ) -> list[dict[str, Any]]:
        """The lines for the record of some prompts, drawn and scored. Raises CannotWrite where the
        pictures cannot be written, which the cache does not raise by itself."""
        count = self.rounds.images
        jobs = [
            Job(one.prompt, seed_of(self.seed, "draw", place, i)) for place, one in part for i in range(count)
        ]
        judge_prompts = [one.judge_prompt for _, one in part for _ in range(count)]
        seen = [whole(view) for view in scorer.score(jobs, judge_prompts)]
        if not self.cache.writable:
            raise unwritable(self.cache.folder)
        return [
            {
                "prompt": one.prompt,
                "judged_as": one.judged_as or None,
                "seeds": [job.seed for job in jobs[i * count : (i + 1) * count]],
                "pictures": [view.picture for view in seen[i * count : (i + 1) * count]],
                "scores": [view.scores for view in seen[i * count : (i + 1) * count]],
            }
            for i, (_, one) in enumerate(part)
        ]

    def _mined(self, rows: Sequence[Mapping[str, Any]], number: int, store: Store) -> PairMiner:
        """The pairs of some prompts; their pictures are in the store afterwards."""
        mined = PairMiner(store, "drawn", self.config.margin, self.rounds.pairs)
        for row in rows:
            try:
                mined.add_group(self._group(row, number, store))
            except RepriseError as error:
                if store.images.writable:
                    raise
                raise unwritable(store.images.folder) from error
        return mined

    def learn(self, number: int, newest: Path | None) -> Path:
        from .loop import DiffusionDpoLoop

        folder, self.opened = self.round_folder(number), None
        free_memory()
        config = self.config.model_copy(
            update={
                "rounds": None,
                "preferences": folder / "preferences",
                "start": _file(newest) if newest else self.config.start,
            }
        )
        write_whole(folder / "config.yaml", save_config(config))
        loop = DiffusionDpoLoop(
            config, folder, True, lambda line: self.log(f"round {number}: {line}"), of_rounds=True
        )
        return loop.run()

    def evaluate(self, newest: Path | None) -> tuple[dict[str, float], list[dict[str, Any]]]:
        (prompts,), count = self.sets.values(), self.rounds.eval_images
        jobs = [
            Job(one.prompt, seed_of("evaluate", i, j)) for i, one in enumerate(prompts) for j in range(count)
        ]
        judge_prompts = [one.judge_prompt for one in prompts for _ in range(count)]
        with self.open_scorer(self.renderer(newest)) as scorer:
            seen = [whole(view) for view in scorer.score(jobs, judge_prompts)]
        figures = {
            f"held-out/{name}": sum(view.scores[name] for view in seen) / len(seen)
            for name in self.picture_rewards
        }
        shown = sorted({i * len(prompts) // SHOWN for i in range(SHOWN)})
        samples = [
            {
                "prompt": prompts[i].prompt,
                "reason": "",
                "rewrite": prompts[i].prompt,
                "fallback": None,
                "picture": seen[i * count].picture,
                "scores": seen[i * count].scores,
            }
            for i in shown
        ]
        return figures, samples

    def _group(self, row: Mapping[str, Any], number: int, store: Store) -> PictureGroup:
        """One prompt's pictures, by the rewards that count."""

        def load(key: str) -> Tensor | None:
            name = row.get("stored", {}).get(key)
            stored = store.image(name) if name else None
            if stored is not None:
                return stored
            found = self.cache.get_image(key)
            return found[0] if found else None

        pictures = [
            ScoredPicture(lambda key=key: load(key), row["prompt"], self.mixed_reward(scores), seed, scores)
            for key, seed, scores in zip(row["pictures"], row["seeds"], row["scores"], strict=True)
        ]
        return PictureGroup(
            row["judged_as"] or row["prompt"],
            pictures,
            "+".join(self.rounds.rewards),
            True,
            1.0,
            "round",
            str(number),
            self.config.model,
        )


def whole(view: PictureScores) -> PictureScores:
    """A picture that every reward has scored. Raises RewardFailed with the reward's name."""
    for name, reason in view.failed.items():
        raise RewardFailed(name, f"{reason}; nothing is lost, --resume goes on")
    return view


def unwritable(folder: Path) -> CannotWrite:
    return CannotWrite(
        f"pictures cannot be written to {folder}: {free_megabytes(folder)} MB are free; make room"
    )


def _file(final: Path) -> Path:
    (file,) = final.glob("*.safetensors")
    return file
