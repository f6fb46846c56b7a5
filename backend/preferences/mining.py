"""Groups of scored pictures from the files of runs: `record.json` of renders, and the rollouts of trainings,
of their rounds and of `reprise data judge`.

Candidates that were pruned have no finished picture and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput, first_line
from ..core.parsing import parse_json, parse_yaml
from ..core.types import RewardSpec
from ..factory import reward_spec
from ..rewards.scales import to_unit_range
from ..storage.cache import Cache
from ..storage.files import is_inside, read_lines
from ..storage.images import read_picture
from ..storage.records import RECORD, Record, find_records, load_record
from .pairing import PictureGroup, ScoredPicture, score_range
from .store import Store, canonical_reward_name

if TYPE_CHECKING:
    from torch import Tensor

ROLLOUTS = Path("rollouts") / "rollouts.jsonl"
PICTURES = Path("rollouts") / "pictures"
CONFIG = "config.yaml"
ROUNDS = "rounds/*/rollouts.jsonl"
JUDGE_DATA = ".rollouts.jsonl"  # end of a file's name by `reprise data judge`; NAME.pictures/ is beside it
EMBEDDED_JUDGE = "shapeworld"  # selects if neither a judge nor rewards were named
UNKNOWN_DIRECTION = "it is not recorded whether higher scores of {} are better; assumed so"
RESTORE_HINT = "restore the file, or leave this run out"


@dataclass
class WeightedRewards:
    """What a training's pictures are compared by: one reward, or the weighted mean of several.

    In a mean each score is first scaled to 0..1 by its reward's range, as rounds do. `unscored` counts the
    pictures that lack one of the scores; `found_names` are the rewards of all pictures.
    """

    weights: Mapping[str, float]
    unscored: int = 0
    found_names: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return "+".join(self.weights)

    def score(self, scores: Mapping[str, float]) -> float | None:
        """One score from a picture's `scores` by reward; None if one is missing."""
        self.found_names |= scores.keys()
        if not self.weights.keys() <= scores.keys():
            self.unscored += 1
            return None
        if len(self.weights) == 1:
            return scores[self.name]
        specs = {name: reward_spec(name) for name in self.weights}
        total = sum(
            weight * (to_unit_range(spec, scores[name]) if (spec := specs[name]) else scores[name])
            for name, weight in self.weights.items()
        )
        return total / sum(self.weights.values())

    def group(
        self,
        typed: str,
        meaning: str,
        pictures: list[ScoredPicture],
        source: str,
        run: object,
        renderer: object,
    ) -> PictureGroup:
        spec = reward_spec(self.name)
        return PictureGroup(
            meaning,
            pictures,
            self.name,
            spec.higher_is_better if spec else True,
            score_range(spec),
            source,
            str(run),
            _renderer(renderer),
            typed,
        )

    def note_missing(self, run: object, note: Callable[[str], None]) -> None:
        """Call `note` about pictures left out. Raises BadInput if no picture had a score."""
        if self.unscored and not self.weights.keys() <= self.found_names:
            raise BadInput(
                f"{run} has no scores of {self.name!r}; expected one of {', '.join(sorted(self.found_names))}"
            )
        if self.unscored:
            note(f"{run}: {self.unscored} pictures without a score of {self.name!r} are left out")
        if unknown := [name for name in self.weights if reward_spec(name) is None]:
            note(f"{run}: {UNKNOWN_DIRECTION.format(', '.join(unknown))}")


def read_runs(path: Path, reward: str | None, note: Callable[[str], None]) -> Iterator[PictureGroup]:
    """The groups of every run in or below the folder `path`, or of a file of `reprise data judge`.

    Pictures are compared by `reward`; None: by what the run itself selected or trained by. `note` is called
    with remarks for the user. Raises BadInput if there is no run, or a run has no scores of `reward`.
    """
    reward = reward and canonical_reward_name(reward)
    if path.is_file() and path.name.endswith(JUDGE_DATA):
        yield from judge_data_groups(path, reward, note)
        return
    if not path.is_dir():
        raise BadInput(
            f"there is no folder {path}; name one of `reprise render` or `reprise train`, a "
            f"store, or a FILE{JUDGE_DATA} of `reprise data judge`"
        )
    records, judged = find_records(path), sorted(path.rglob(f"*{JUDGE_DATA}"))
    rollouts = sorted(path.rglob(str(ROLLOUTS)))
    rounds = sorted(
        (file for file in path.rglob(ROUNDS) if file.parent.name.isdecimal()),
        key=lambda file: (file.parent.parent, int(file.parent.name)),
    )
    if not any((records, rollouts, rounds, judged)):
        raise BadInput(
            f"{path} holds no run: expected {RECORD} of `reprise render`, or rollouts of `reprise train` or "
            "`reprise data judge`"
        )
    unsaid = False
    for file in records:
        record = load_record(file)
        yield record_group(file.parent, record, reward)
        unsaid |= reward is not None and reward_spec(reward) is None and not _selected_best(record, reward)
    if unsaid:
        note(f"{path}: {UNKNOWN_DIRECTION.format(reward)}")
    for file in rollouts:
        yield from rollout_groups(file.parent.parent, reward, note)
    for run in dict.fromkeys(file.parent.parent.parent for file in rounds):
        yield from round_groups(run, [file for file in rounds if file.is_relative_to(run)], reward, note)
    for file in judged:
        yield from judge_data_groups(file, reward, note)


@contextmanager
def _refuse_damaged(file: Path, remedy: str = RESTORE_HINT) -> Iterator[None]:
    """Turns errors in reading `file` into one BadInput that names it."""
    try:
        yield
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise BadInput(f"{file} is damaged ({cause}); {remedy}") from error


def record_group(folder: Path, record: Record, reward: str | None = None) -> PictureGroup:
    """The finished candidates of one prompt, reflection rounds included. Raises BadInput."""
    with _refuse_damaged(folder / RECORD):
        return _record_group(folder, record, reward)


def _record_group(folder: Path, record: Record, reward: str | None) -> PictureGroup:
    finished = [c for c in record.candidates if c.image is not None and c.score is not None]
    settings = record.settings
    named = {
        c.index: {canonical_reward_name(name): score for name, score in c.scores.items()} for c in finished
    }
    name = reward or _selection_reward(settings, list(named.values()))
    scores = {c.index: (c.score or 0.0) if reward is None else named[c.index].get(reward) for c in finished}
    if None in scores.values():
        known = sorted({name for of_one in named.values() for name in of_one})
        raise BadInput(f"{folder / RECORD} has no scores of {reward!r}; expected one of {', '.join(known)}")
    spec = reward_spec(name)
    if spec is not None:
        higher = spec.higher_is_better
    else:  # the selected picture tells whether higher is better
        winner, selects = record.winner.score, reward is None or _selected_best(record, reward)
        higher = not selects or winner is None or all(winner >= (c.score or 0.0) for c in finished)
    # No reason in reflection rounds: their rewrites also follow a critique, which a pair does not record.
    reasons = {r.prompt: r.reason for r in record.rewrites if r.fallback is None and r.rewriter != "none"}
    pictures = [
        ScoredPicture(
            partial(_image_file, folder, str(c.image)),
            c.prompt,
            float(scores[c.index] or 0.0),
            c.seed,
            named[c.index],
            reasons.get(c.prompt) if c.round == 0 else None,
        )
        for c in finished
    ]
    return PictureGroup(
        record.prompt,
        pictures,
        name,
        higher,
        score_range(spec),
        "render",
        str(folder),
        str(settings.get("renderer")),
    )


def _selected_best(record: Record, reward: str) -> bool:
    """Whether the best picture was selected by the scores of `reward`."""
    return all(
        {canonical_reward_name(name): score for name, score in c.scores.items()}.get(reward) == c.score
        for c in record.candidates
        if c.score is not None
    )


def _selection_reward(settings: Mapping[str, Any], scores: Sequence[Mapping[str, float]]) -> str:
    """The name of what the run selected by: "+" joins the judge and the rewards.

    A single judge has the name of its scores: the settings may name its folder or server instead.
    """
    scored = {name for of_one in scores for name in of_one}
    named = list(filter(None, dict.fromkeys([settings.get("judge"), *(settings.get("rewards") or {})])))
    if len(named) < 2 and len(scored) == 1:
        return scored.pop()
    return canonical_reward_name("+".join(named)) or EMBEDDED_JUDGE


def rollout_groups(run: Path, reward: str | None, note: Callable[[str], None]) -> Iterator[PictureGroup]:
    """The groups of a training's rollouts: pictures of a prompt's rewrites and of the prompt as typed."""
    settings, cache = _run_settings(run), Cache(run / PICTURES)
    with _refuse_damaged(run / CONFIG):
        by = _rewards_to_compare(run, settings.get("rewards") or {}, reward)
        renderer = (settings.get("renderer") or {}).get("name", "shapeworld")
    groups: dict[int, list[dict[str, Any]]] = {}
    with _refuse_damaged(run / ROLLOUTS):
        for row in read_lines(run / ROLLOUTS, RESTORE_HINT):
            groups.setdefault(row["position"], []).append(row)
        for rows in groups.values():
            typed, meaning = _prompts(rows[0])
            pictures = [
                one
                for row in rows
                if row["pictures"]  # an answer that could not be parsed was not drawn
                for one in _rewrite_pictures(
                    cache,
                    meaning,
                    row,
                    row["seeds"],
                    None if row["variant"] == "original" else row.get("reason", ""),
                    by,
                )
            ]
            if pictures:
                yield by.group(typed, meaning, pictures, "training", run, renderer)
    by.note_missing(run, note)


def round_groups(
    run: Path, files: list[Path], reward: str | None, note: Callable[[str], None]
) -> Iterator[PictureGroup]:
    """The groups of a training in rounds, of a renderer or of a rewriter. `files` are its rounds' rollouts.

    Pictures of pairs are also in the round's own store, and are read from there if the cache lacks them.
    """
    settings, cache = _run_settings(run), Cache(run / PICTURES)
    with _refuse_damaged(run / CONFIG):
        rounds = settings.get("rounds") or {}
        by = _rewards_to_compare(run, rounds.get("rewards") or {}, reward)
        drawing = (rounds.get("renderer") or {}).get("name", "shapeworld")
    for file in files:
        store = Store(file.parent / "preferences", create=True)
        with _refuse_damaged(file):
            for row in read_lines(file, RESTORE_HINT):
                (typed, meaning), pictures = _prompts(row), list[ScoredPicture]()
                if "rewrites" in row:
                    for one in row["rewrites"]:
                        pictures += _rewrite_pictures(cache, meaning, one, row["seeds"], one["reason"], by)
                else:
                    pictures += _prompt_pictures(cache, store, row, by)
                if pictures:
                    renderer = drawing if "rewrites" in row else settings.get("model")
                    yield by.group(typed, meaning, pictures, "round", run, renderer)
    by.note_missing(run, note)


def _prompts(row: Mapping[str, Any]) -> tuple[str, str]:
    """(the prompt as typed, the prompt that the judges read)."""
    return _checked_text(row["prompt"]), _checked_text(row.get("judged_as") or row["prompt"])


def judge_data_groups(file: Path, reward: str | None, note: Callable[[str], None]) -> Iterator[PictureGroup]:
    """The groups of a file of `reprise data judge`: the finished pictures of each prompt."""
    stamp = file.with_suffix(".json")
    try:
        made = parse_json(stamp.read_bytes())
        stored = made.get("spec") or {}  # files of earlier versions have none
        named = canonical_reward_name(str(stored.get("name") or made["reward"]))
        spec = RewardSpec(**stored) if stored else reward_spec(named)
        spread = score_range(spec)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise BadInput(
            f"{stamp} does not tell what scored {file.name}; restore it as `reprise data judge` wrote it"
        ) from error
    if reward not in (None, named):
        raise BadInput(f"{file} has no scores of {reward!r}; expected {named}")
    store = Store(file.with_name(file.name.removesuffix(JUDGE_DATA) + ".pictures"), create=True)
    groups: dict[str, list[ScoredPicture]] = {}
    again = "make it again with `reprise data judge`"
    with _refuse_damaged(file, again):
        for key, row in {row["key"]: row for row in read_lines(file, again)}.items():
            _, drawn_as, seed, _ = parse_json(key)
            scores = _checked_scores({named: row["score"]})
            groups.setdefault(_checked_text(row["prompt"]), []).append(
                ScoredPicture(
                    partial(store.image, _checked_text(row["image"])),
                    _checked_text(drawn_as),
                    scores[named],
                    _seed(seed),
                    scores,
                    content=row["image"],
                )
            )
    if spec is None:
        note(f"{file}: {UNKNOWN_DIRECTION.format(named)}")
    for prompt, pictures in groups.items():
        yield PictureGroup(
            prompt,
            pictures,
            named,
            spec.higher_is_better if spec else True,
            spread,
            "data judge",
            str(file),
            _renderer(made.get("renderer")),
        )


def _rewards_to_compare(run: Path, trained: Mapping[str, float], reward: str | None) -> WeightedRewards:
    """`reward`, or else those of the training's rewards that score pictures. Raises BadInput for none."""
    if reward is not None:
        return WeightedRewards({reward: 1.0})
    of_pictures = {
        canonical_reward_name(name): weight
        for name, weight in trained.items()
        if (spec := reward_spec(name)) is None or spec.reads == "images"
    }
    if not of_pictures:
        raise BadInput(f"{run / CONFIG} has no reward that scores pictures; name one with --reward")
    return WeightedRewards(of_pictures)


def _rewrite_pictures(
    cache: Cache,
    meaning: str,
    row: Mapping[str, Any],
    seeds: list[int],
    reason: str | None,
    by: WeightedRewards,
) -> Iterator[ScoredPicture]:
    """The pictures of one rewrite."""
    for seed, key in zip(seeds, row["pictures"]):
        scores = _picture_scores(cache, key, meaning, row)
        if (score := by.score(scores)) is not None:
            yield ScoredPicture(
                partial(_cached_image, cache, key),
                _checked_text(row["rewrite"]),
                score,
                _seed(seed),
                scores,
                reason if reason is None else _checked_text(reason),
                key,
            )


def _prompt_pictures(
    cache: Cache, store: Store, row: Mapping[str, Any], by: WeightedRewards
) -> Iterator[ScoredPicture]:
    """The pictures of one prompt that was drawn as typed."""
    for key, seed, row_scores in zip(row["pictures"], row["seeds"], row["scores"]):
        scores = _checked_scores(row_scores)
        if (score := by.score(scores)) is not None:
            load = partial(_stored_image, store, row.get("stored", {}).get(key), cache, key)
            yield ScoredPicture(load, _checked_text(row["prompt"]), score, _seed(seed), scores, content=key)


def _checked_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r:.60}")
    value.encode()  # raises for half a letter, which JSON can hold
    return value


def _seed(value: Any) -> int | None:
    return None if value is None else int(value)


def _renderer(value: Any) -> str | None:
    return None if value is None else str(value)


def _checked_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """Scores by canonical reward name, all finite. Raises ValueError or TypeError."""
    found = {canonical_reward_name(name): float(score) for name, score in scores.items()}
    if not all(map(math.isfinite, found.values())):
        raise ValueError(f"a score is NaN or infinite in {found}")
    return found


def _run_settings(run: Path) -> dict[str, Any]:
    try:
        found = parse_yaml((run / CONFIG).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except (OSError, ValueError):
        pass
    raise BadInput(f"{run} has no readable config.yaml; give the whole folder of a run")


def _picture_scores(cache: Cache, key: str, meaning: str, row: Mapping[str, Any]) -> dict[str, float]:
    """A picture's own scores. A row's are means over its pictures, and used only if it has one picture."""
    found = cache.get_scores(Cache.key("scores", key, meaning))
    return _checked_scores(found or (row["scores"] if len(row["pictures"]) == 1 else {}))


def _stored_image(store: Store, name: str | None, cache: Cache, key: str) -> Tensor | None:
    found = store.image(name) if name else None
    return _cached_image(cache, key) if found is None else found


def _cached_image(cache: Cache, key: str) -> Tensor | None:
    found = cache.get_image(key)
    return found[0] if found else None


def _image_file(folder: Path, name: str) -> Tensor | None:
    try:
        return read_picture(folder / name) if is_inside(folder, folder / name) else None
    except BadInput:
        return None
