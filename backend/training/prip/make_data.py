"""Makes the logs that PRIP learns from: draws records that have no picture yet, and scores all.

Source: PRIP (arXiv 2407.00247), section 4.3, where a log of users has several pictures of a prompt and
ImageReward simulates which one they prefer. Pictures and scores are stored in a folder beside the log, so
that a call that was stopped goes on, and nothing is drawn or scored twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, Interrupted, RepriseError, RewardFailed
from ...core.interfaces import Renderer, Reward
from ...core.scoring import image_scores
from ...core.seeds import seed_of
from ...core.types import Job
from ...storage.cache import Cache
from ...storage.images import read_picture
from ...storage.outputs import write_made
from ..common.offload import StageTimer
from ..rollouts.picture_log import LoggedPicture, LogLine
from ..rollouts.scoring import PictureScorer

if TYPE_CHECKING:
    from torch import Tensor


IN_A_ROW = 8  # pictures for which a reward fails, after which the fault is not the pictures'
Progress = Callable[[int, int], None]


def make_log(
    path: Path,
    records: Sequence[LoggedPicture],
    renderer: Callable[[], Renderer],
    rewards: Mapping[str, Reward],
    *,
    renders: int = 4,
    seed: int = 0,
    at_once: int = 64,
    overlap: bool = False,
    judge_prompts: Mapping[str, str] | None = None,
    progress: Progress = lambda done, of: None,
) -> dict[str, Any]:
    """Write the log `path`, with pictures and scores in the folder `path`.pictures, and count what is in it.

    A record without a picture becomes `renders` lines, drawn from seeds that all records of its user prompt
    share. `judge_prompts` maps user prompts to what judges read in their place. A record's scores by other
    rewards stay. Raises RewardFailed where a reward fails for one picture after the other, RenderFailed,
    BadInput for a picture that cannot be read, RepriseError where pictures cannot be written.
    """
    assert rewards, "pictures are drawn to be scored"
    cache = Cache(path.with_name(f"{path.name}.pictures"), limit=None)  # they are the result
    todo = [record for record in records if record.image is None]
    of, done, failed = len(records) + len(todo) * (renders - 1), 0, 0
    lines: list[list[LogLine]] = [[] for _ in records]
    scorer = PictureScorer(renderer(), rewards, cache, StageTimer(), at_once, overlap) if todo else None
    place = {id(record): number for number, record in enumerate(records)}
    # Pictures of a prompt are drawn together: parts of whole records.
    step = max(1, at_once // renders)
    for start in range(0, len(todo), step):
        part = todo[start : start + step]
        jobs = [
            Job(record.system, seed_of(seed, "picture-log", record.prompt, i))
            for record in part
            for i in range(renders)
        ]
        prompts = [_judge_prompt(record, judge_prompts) for record in part for _ in range(renders)]
        assert scorer is not None
        for number, result in enumerate(scorer.score(jobs, prompts)):
            record = part[number // renders]
            image = cache.folder / result.picture[:2] / f"{result.picture}.png"
            if not image.is_file():
                raise RepriseError(
                    f"the picture {image} is not there: the disk is full, or it was deleted; "
                    f"make room, or delete {cache.folder}, and call again"
                )
            failed += bool(result.failed)
            lines[place[id(record)]].append(_line(path, record, image, result.scores))
        done += len(jobs)
        progress(done, of)
        _check_scored(scorer.rewards, [line for some in lines for line in some])
    in_a_row = 0
    for number, record in enumerate(records):
        if record.image is not None:
            scores, why = _scores(cache, record, rewards, _judge_prompt(record, judge_prompts))
            failed += bool(why)
            in_a_row = in_a_row + 1 if why else 0
            if why and in_a_row == IN_A_ROW:
                raise RewardFailed(*why)
            lines[number] = [_line(path, record, record.image, scores)]
            done += 1
            progress(done, of)
    rows = [line for some in lines for line in some]
    _check_scored(rewards, rows)
    text = "".join(line.model_dump_json(exclude_defaults=True) + "\n" for line in rows)
    write_made(cache.folder, path, text)
    return {
        "file": str(path),
        "prompts": len({record.prompt for record in records}),
        "pictures": len(rows),
        "drawn": scorer.drawn if scorer else 0,
        "not_judged": failed,
    }


def _judge_prompt(record: LoggedPicture, judge_prompts: Mapping[str, str] | None) -> str:
    return (judge_prompts or {}).get(record.prompt, record.prompt)


def _line(path: Path, record: LoggedPicture, image: Path, scores: Mapping[str, float]) -> LogLine:
    where = os.path.relpath(image.absolute(), path.parent.absolute())
    system = "" if record.system == record.prompt else record.system
    return LogLine(
        prompt=record.prompt, system=system, image=Path(where).as_posix(), scores={**record.scores, **scores}
    )


def _scores(
    cache: Cache, record: LoggedPicture, rewards: Mapping[str, Reward], judge_prompt: str
) -> tuple[dict[str, float], tuple[str, str] | None]:
    """(all scores of a picture file, (the reward that failed last, why))."""
    picture = record.picture
    try:
        status = picture.stat()
    except OSError as error:
        raise BadInput(f"there is no picture {picture}; take its line out of the log") from error
    key = Cache.key("scores", str(picture.resolve()), status.st_size, status.st_mtime_ns, judge_prompt)
    known = {**record.scores, **(cache.get_scores(key) or {})}
    todo = [name for name in rewards if name not in known]
    if not todo:
        return known, None
    image: Tensor = read_picture(picture)[None]
    fresh, why = {}, None
    for name in todo:
        try:
            (fresh[name],) = image_scores(rewards[name], image, [judge_prompt])
        except Interrupted:
            raise
        except RepriseError as error:
            why = (name, str(error))
    cache.put_scores(key, {**(cache.get_scores(key) or {}), **fresh})
    return {**known, **fresh}, why


def _check_scored(rewards: Mapping[str, Reward], lines: Sequence[LogLine]) -> None:
    for name in rewards:
        if lines and not any(name in line.scores for line in lines):
            raise RewardFailed(name, f"it scored none of {len(lines)} pictures")
