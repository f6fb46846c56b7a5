"""Makes what a judge learns from: draws prompts, keeps x0 previews and finished pictures, and labels them.

Source: PARM (arXiv 2501.13926), section 3. Departs from it:
- match: a finished picture; yes where its score is above `threshold`. Any reward may say so, the embedded
  detector by default.
- potential: a preview; the answer is the label of its finished picture.
- clarity: a preview; yes where it already gets the finished picture's label AND is like it: their pixels'
  correlation, at half size and without each colour's mean, is `alike` at least. Both, because a preview of
  fog is "wrong", as most finished pictures are, and yet shows nothing.
- critique: a finished picture that is wrong; the reason in the reward's own words, where it has some.

What was drawn and scored is stored in FILE.rollouts.jsonl, a line for each picture, and in FILE.pictures/, so
that a call that was stopped goes on, and another threshold draws nothing again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput
from ...core.interfaces import Critic, Renderer, Reward
from ...core.scoring import image_scores, reward_fingerprint, verdicts
from ...core.seeds import seed_of
from ...core.types import Job
from ...preferences.store import Store
from ...search.pruning import steps_at_shares
from ...storage.files import append_line, read_lines, write_whole
from ...storage.images import read_picture
from ...storage.outputs import write_made
from ...storage.records import find_records
from ..rollouts.picture_log import LoggedPicture, read_source
from .data import JudgeLine, balanced, split_of

if TYPE_CHECKING:
    from torch import Tensor

LOOKS = (0.125, 0.1875, 0.25, 0.375, 0.5, 0.75)  # shares of the steps after which previews are stored
ALIKE = 0.9  # least likeness of a clear preview
ROW = {"key": str, "prompt": str, "score": float, "image": str, "previews": dict}  # of FILE.rollouts.jsonl
SPEC = "spec"  # key of the stamp: what the reward's numbers mean
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Labels:
    """Which scores are right, which previews are clear, how many prompts are held out."""

    threshold: float
    higher_is_better: bool = True
    alike: float = ALIKE
    test_share: float = 0.1
    calibration_share: float = 0.1

    def right(self, score: float) -> bool:
        return score > self.threshold if self.higher_is_better else score < self.threshold


@dataclass(frozen=True)
class PictureSource:
    """A picture to draw (`drawn_as` from `seed`), or one that is drawn already (`load`)."""

    prompt: str
    judge_prompt: str
    drawn_as: str
    seed: int | None
    load: Callable[[], Tensor | None] | None = None
    name: str = ""  # where a drawn one is


class PreviewRecorder:
    """A watcher that stores previews and lets every row go on."""

    def __init__(self, steps: Sequence[int]):
        self.steps = frozenset(steps)
        self.seen: dict[int, Tensor] = {}

    def look(self, step: int, rows: list[int], previews: Tensor) -> list[int]:
        self.seen[step] = previews.clone()
        return rows


def default_looks(steps: int) -> list[int]:
    """The steps, from 1, after which previews are stored of a picture that is drawn in `steps`."""
    return sorted(steps_at_shares(LOOKS, steps))


def read_sources(source: str, renders: int, seed: int, use: str = "train") -> list[PictureSource]:
    """What to draw and judge, of prompts (for a `use` of `read_prompts`), a log of pictures, or a folder of
    runs.

    Of runs finished pictures are taken: they have previews only of stopped candidates, whose outcome is
    unknown. Raises BadInput.
    """
    if Path(source).is_dir() and find_records(Path(source)):
        return list(_of_runs(Path(source)))
    records, judge_prompts = read_source(source, use)
    found = []
    for record in records:
        judge_prompt = judge_prompts.get(record.prompt, record.prompt)
        if record.image is not None:
            found.append(
                PictureSource(
                    record.prompt,
                    judge_prompt,
                    record.system,
                    None,
                    partial(read_picture, record.image),
                    str(record.image),
                )
            )
        else:
            found += [
                PictureSource(record.prompt, judge_prompt, record.system, _seed(record, i, seed))
                for i in range(renders)
            ]
    return found


def _seed(record: LoggedPicture, number: int, seed: int) -> int:
    return seed_of(seed, "judge-data", record.prompt, number)


def _of_runs(folder: Path) -> Iterator[PictureSource]:
    from ...preferences.mining import record_group
    from ...storage.records import load_record

    for path in find_records(folder):
        record = load_record(path)
        files = [c.image for c in record.candidates if c.image is not None and c.score is not None]
        for file, picture in zip(files, record_group(path.parent, record).pictures, strict=True):
            yield PictureSource(
                record.prompt,
                record.prompt,
                picture.drawn_as,
                picture.seed,
                picture.load,
                str(path.parent / file),
            )


def make_data(
    path: Path,
    sources: Sequence[PictureSource],
    renderer: Callable[[], Renderer],
    reward: Reward,
    labels: Labels,
    *,
    looks: Sequence[int] | None = None,
    at_once: int = 32,
    made_by: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, of: None,
) -> dict[str, Any]:
    """Write the examples to `path` and count them: {"file", "pictures", "examples": {…}, …}.

    `looks` are the steps after which previews are stored (None: `default_looks`; empty for renderers without
    previews). `made_by` describes what draws, so that pictures drawn in another way are not mixed in. Raises
    BadInput, RewardFailed, RenderFailed, and RepriseError where the disk is full.
    """
    store = Store(path.with_name(f"{path.name}.pictures"), create=True)
    rollouts = path.with_name(f"{path.name}.rollouts.jsonl")
    sources = list({_key(one): one for one in sources}.values())
    stamp = {
        "reward": reward_fingerprint(reward),
        SPEC: asdict(reward.spec),
        "looks": looks and sorted(looks),
        **(made_by or {}),
    }
    marked = _check_same(rollouts, stamp)
    known = _known(rollouts)
    todo = [one for one in sources if _key(one) not in known]
    drawer = renderer() if any(one.load is None for one in todo) else None
    if drawer is not None:
        marked = _check_same(rollouts, {**stamp, "fingerprint": drawer.fingerprint})
        looks = default_looks(drawer.steps) if looks is None else looks
        wrong = [step for step in looks if not 1 <= step < drawer.steps]
        if wrong:
            raise BadInput(f"previews are seen after steps 1 to {drawer.steps - 1}; got {wrong[0]}")
    write_whole(rollouts.with_suffix(".json"), json.dumps(marked, sort_keys=True))
    done = len(sources) - len(todo)
    for start in range(0, len(todo), at_once):
        progress(done, len(sources))
        part = todo[start : start + at_once]
        for made in (False, True):
            some = [one for one in part if (one.load is None) is made]
            if some:
                rows = _rolled(some, drawer if made else None, looks or [], reward, store)
                append_line(rollouts, "\n".join(map(json.dumps, rows)))
                known |= {row["key"]: row for row in rows}
        done += len(part)
    progress(done, len(sources))
    if isinstance(reward, Critic):
        _criticize(rollouts, sources, known, reward, labels, store)
    lines = [line for one in sources for line in _lines(path, store, one, known[_key(one)], labels)]
    examples = balanced(lines)
    taught = [sum(line.split == "train" for line in some) for some in (lines, examples)]
    if not examples or (taught[0] and not taught[1]):
        raise BadInput(
            f"no example came of {len(sources)} pictures: all are right, or all are wrong; draw "
            "more prompts, or move --threshold"
        )
    text = "".join(line.model_dump_json(exclude_defaults=True) + "\n" for line in examples)
    write_made(store.folder, path, text)
    right = sum(labels.right(known[_key(one)]["score"]) for one in sources)
    counts = Counter(f"{line.split}/{line.question}" for line in examples)
    return {
        "file": str(path),
        "pictures": len(sources),
        "drawn_or_judged": len(todo),
        "right": right / len(sources),
        "prompts": len({one.prompt for one in sources}),
        "examples": dict(sorted(counts.items())),
        "left_out": len(lines) - len(examples),
    }


def likeness(preview: Tensor, finished: Tensor) -> float:
    """Correlation of two pictures (H, W, 3) at half size, each colour without its mean: -1..1. Of flat
    pictures 1 where they are the same, else 0."""
    import torch
    from torch.nn import functional

    both = torch.stack([preview, finished]).permute(0, 3, 1, 2).float()
    a, b = functional.avg_pool2d(both, 2).flatten(2)
    a, b = ((one - one.mean(1, keepdim=True)).flatten() for one in (a, b))
    size = a.norm() * b.norm()
    return float(a @ b / size) if size > 1e-6 else float((preview - finished).abs().max() < 1e-3)


def _rolled(
    part: Sequence[PictureSource],
    renderer: Renderer | None,
    looks: Sequence[int],
    reward: Reward,
    store: Store,
) -> list[dict[str, Any]]:
    """A row of the record for each source: its picture, its previews, their scores."""
    previews: dict[int, Tensor] = {}
    if renderer is not None:
        watcher = PreviewRecorder(looks) if looks else None
        jobs = [Job(one.drawn_as, one.seed or 0) for one in part]
        images = [image for image in renderer.render(jobs, watcher).images if image is not None]
        previews = watcher.seen if watcher else {}
    else:
        images = []
        for one in part:
            image = one.load() if one.load else None
            if image is None:
                raise BadInput(f"the picture {one.name} is gone or damaged; bring it back, or take it out")
            images.append(image)
    prompts = [one.judge_prompt for one in part]
    scores = _scores(reward, images, prompts)
    seen = {step: _scores(reward, list(images_of), prompts) for step, images_of in sorted(previews.items())}
    rows = []
    for i, one in enumerate(part):
        shown = {
            str(step): {
                "image": store.put_image(previews[step][i]),
                "score": scored[i],
                "alike": round(likeness(previews[step][i], images[i]), 4),
            }
            for step, scored in seen.items()
        }
        rows.append(
            {
                "key": _key(one),
                "prompt": one.prompt,
                "seed": one.seed,
                "score": scores[i],
                "image": store.put_image(images[i]),
                "previews": shown,
            }
        )
    return rows


def _criticize(
    rollouts: Path,
    sources: Sequence[PictureSource],
    known: dict[str, dict[str, Any]],
    reward: Critic,
    labels: Labels,
    store: Store,
) -> None:
    """Have pictures criticised that are wrong by this call's threshold, and have no critique yet."""
    for one in sources:
        row = known[_key(one)]
        if "critique" in row or labels.right(row["score"]):
            continue
        image = store.image(row["image"])
        if image is None:
            raise BadInput(
                f"a picture of {store.folder} is gone or damaged; bring it back, or delete "
                f"{rollouts} and draw again"
            )
        (verdict,) = verdicts(reward, image[None], [one.judge_prompt])
        known[_key(one)] = {**row, "critique": verdict.critique}
        append_line(rollouts, json.dumps(known[_key(one)]))


def _scores(reward: Reward, images: Sequence[Tensor], prompts: Sequence[str]) -> list[float]:
    """Pictures of different sizes are scored one by one."""
    import torch

    if len({image.shape for image in images}) == 1:
        return image_scores(reward, torch.stack(list(images)), prompts)
    return [
        image_scores(reward, image[None], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)
    ]


def _lines(
    path: Path, store: Store, one: PictureSource, row: dict[str, Any], labels: Labels
) -> Iterator[JudgeLine]:
    def line(question: Any, image: str, **answer: Any) -> JudgeLine:
        where = os.path.relpath(store.image_path(image).absolute(), path.parent.absolute())
        return JudgeLine(
            prompt=one.judge_prompt,
            question=question,
            image=Path(where).as_posix(),
            seed=one.seed,
            split=split_of(one.judge_prompt, labels.test_share, labels.calibration_share),
            **answer,
        )

    right = labels.right(row["score"])
    yield line("match", row["image"], label=right)
    if not right and row.get("critique", "").strip():
        yield line("critique", row["image"], text=row["critique"])
    for step, seen in row["previews"].items():
        clear = labels.right(seen["score"]) is right and seen["alike"] >= labels.alike
        yield line("clarity", seen["image"], label=clear, step=int(step))
        yield line("potential", seen["image"], label=right, step=int(step))


def _key(one: PictureSource) -> str:
    return json.dumps([one.judge_prompt, one.drawn_as, one.seed, one.name])


def _known(rollouts: Path) -> dict[str, dict[str, Any]]:
    """Rows of earlier calls by their keys; a line that a kill left half written is cut."""
    rows = read_lines(rollouts, "delete this line, and its picture is made again", ROW)
    found = {row["key"]: row for row in rows}
    if rollouts.exists():
        whole, end, half = rollouts.read_bytes().rpartition(b"\n")
        if half:
            write_whole(rollouts, whole + end)
    return found


def _check_same(rollouts: Path, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The stamp that says how pictures are made: `made_by`, and what is stored already. Raises BadInput where
    stored pictures were drawn or scored in another way."""
    stamp = rollouts.with_suffix(".json")
    now = dict(made_by)
    if rollouts.exists():
        try:
            stored = json.loads(stamp.read_text(encoding="utf-8"))
            same = all(stored[key] == value for key, value in now.items() if key not in ("fingerprint", SPEC))
            drawn_by = now.get("fingerprint")  # not known where nothing is to be drawn
            same = same and drawn_by in (None, stored.get("fingerprint", drawn_by))
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise BadInput(f"{rollouts} was made with another renderer, reward or steps; give another --out")
        now = {**stored, **now}
    return now
