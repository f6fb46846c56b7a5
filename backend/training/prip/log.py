"""What PRIP learns from: prompts, the pictures that were drawn, and how these were liked.

Source: PRIP (arXiv 2407.00247), sections 3.3 and 4.3. A log is one of
- a file of JSON lines: {"prompt": what the user typed, "system": what drew the picture, if it was something
  else, "image": its path from the file's folder, "scores": {reward: score}};
- a folder in the layout of DiffusionDB: folders `part-000001` of pictures, each with `part-000001.json`,
  {"picture.png": {"p": prompt, …}, …};
- a folder of pictures with captions, `x.png` and `x.txt`, as trainers write them.
`reprise data pictures` draws what a log has no pictures of, scores them, and writes one of the first form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from ...core.config import parse_line
from ...core.errors import BadInput
from ...core.seeds import seed_of
from ...factory import reward_spec
from ...rewards.scales import to_unit_range
from ...storage.files import read_text
from ..common.data import check_lost

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
MAKES = "`reprise data pictures` makes one"


class LogLine(BaseModel):
    """A line of a log. One without `image` is to be drawn, which is `reprise data pictures`'s work."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    prompt: str = Field(min_length=1)
    """What the user typed."""
    system: str = ""
    """What drew the picture; the prompt, where it is not said."""
    image: str | None = Field(None, min_length=1)
    """The picture's path, from the log's folder."""
    scores: dict[str, FiniteFloat] = {}
    """What rewards said of the picture and the user's prompt."""


@dataclass(frozen=True)
class LoggedPicture:
    """One line of a log, whatever its form; `image` is None where it is not drawn yet."""

    prompt: str
    system: str
    image: Path | None
    scores: Mapping[str, float]

    @property
    def picture(self) -> Path:
        assert self.image is not None, "drawn records alone are trained on"
        return self.image


def read_log(path: Path) -> list[LoggedPicture]:
    """The records of a log of any form. Raises BadInput with the place of what is wrong."""
    if not path.is_dir():
        return _read_lines(path)
    parts = sorted(path.rglob("part-*.json"))
    found = [record for part in parts for record in _read_part(part)] if parts else _read_captions(path)
    if not found:
        raise BadInput(
            f"{path} holds no log: no part-*.json as DiffusionDB has them, and no pictures with "
            f"captions (x.png and x.txt); {MAKES}"
        )
    return found


def pictured(path: Path, log: Callable[[str], None]) -> list[LoggedPicture]:
    """The records of a log whose pictures are there. Raises BadInput where many are gone."""
    records = read_log(path)
    drawn = [record for record in records if record.image is not None]
    if len(drawn) < len(records):
        raise BadInput(
            f"{len(records) - len(drawn)} of {len(records)} lines of {path} have no image yet; "
            f"`reprise data pictures {path}` draws them"
        )
    kept = [record for record in drawn if record.picture.is_file()]
    check_lost(
        len(drawn) - len(kept),
        len(drawn),
        f"the pictures of {path}",
        "are gone",
        "bring the pictures back",
        log,
    )
    return kept


def liked(records: Sequence[LoggedPicture], least: Mapping[str, float]) -> list[LoggedPicture]:
    """The records whose scores are not below `least`. Raises BadInput where none is, or none has scores."""
    for name, score in least.items():
        if not any(name in record.scores for record in records):
            raise _unscored(name, records)
        best = max(record.scores[name] for record in records if name in record.scores)
        records = [record for record in records if record.scores.get(name, -math.inf) >= score]
        if not records:
            raise BadInput(f"no picture has {score:g} of {name!r}, at most {best:.3g}; lower least")
    return list(records)


def preferred(
    records: Sequence[LoggedPicture],
    rewards: Mapping[str, float],
    how: str,
    seed: int,
    log: Callable[[str], None],
) -> list[LoggedPicture]:
    """For each user prompt the record whose picture is the target, in the order of the prompts.

    `how` "best": i* = arg max of the weighted mean of `rewards` (name -> weight), each brought to 0..1 by its
    range where it is one of ours, and taken as it is else; of a tie the first. "random": any, by the seed.
    Raises BadInput where there are no scores to choose by.
    """
    groups: dict[str, list[LoggedPicture]] = {}
    for record in records:
        groups.setdefault(record.prompt, []).append(record)
    if how == "random":
        return [group[seed_of(seed, "preferred", prompt) % len(group)] for prompt, group in groups.items()]
    for name in rewards:
        if not any(name in record.scores for record in records):
            raise _unscored(name, records)
    specs = {name: reward_spec(name) for name in rewards}

    def score(record: LoggedPicture) -> float:
        values = [
            weight
            * (
                record.scores[name]
                if (spec := specs[name]) is None
                else to_unit_range(spec, record.scores[name])
            )
            for name, weight in rewards.items()
        ]
        return sum(values) / sum(rewards.values())

    chosen = []
    for group in groups.values():
        scored = [record for record in group if all(name in record.scores for name in rewards)]
        if scored:
            chosen.append(max(scored, key=score))
    check_lost(
        len(groups) - len(chosen),
        len(groups),
        "the prompts",
        "have no scored picture",
        "score them with `reprise data pictures`",
        log,
    )
    return chosen


def held_out(
    records: Sequence[LoggedPicture], share: float
) -> tuple[list[LoggedPicture], list[LoggedPicture]]:
    """(to train on, held out): whole prompts, by their words alone. Raises BadInput where none is left."""
    prompts = sorted({record.prompt for record in records}, key=lambda prompt: seed_of("held out", prompt))
    aside = set(prompts[: math.ceil(share * len(prompts))])
    training = [record for record in records if record.prompt not in aside]
    if not training:
        raise BadInput(f"eval_share={share:g} of {len(prompts)} prompts leaves none to train on; lower it")
    return training, [record for record in records if record.prompt in aside]


def _unscored(name: str, records: Sequence[LoggedPicture]) -> BadInput:
    known = sorted({other for record in records for other in record.scores})
    return BadInput(
        f"the log has no scores of {name!r}, only of {', '.join(known) or 'nothing'}; add them "
        f"with `reprise data pictures LOG --reward {name}`"
    )


def _read_lines(path: Path) -> list[LoggedPicture]:
    text = read_text(path, "log", "is", f"; {MAKES}")
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        one = parse_line(LogLine, line, f"{path}, line {number}")
        image = None if one.image is None else path.parent / one.image
        found.append(LoggedPicture(one.prompt, one.system or one.prompt, image, one.scores))
    if not found:
        raise BadInput(f'{path} is empty; expected lines {{"prompt": …, "image": …}}; {MAKES}')
    return found


def _read_part(path: Path) -> list[LoggedPicture]:
    """A part of DiffusionDB. Pictures without a prompt are left out, as people drew them too."""
    try:
        entries: Any = json.loads(read_text(path, "log", "is"))
        prompts = {name: " ".join(one["p"].split()) for name, one in entries.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise BadInput(
            f'{path} is no part of DiffusionDB: expected {{"picture.png": {{"p": prompt}}, …}}; '
            "fetch it again"
        ) from error
    return [
        LoggedPicture(prompt, prompt, path.parent / name, {}) for name, prompt in prompts.items() if prompt
    ]


def _read_captions(path: Path) -> list[LoggedPicture]:
    found = []
    for image in sorted(path.rglob("*")):
        caption = image.with_suffix(".txt")
        if image.suffix.lower() in PICTURES and caption.is_file():
            prompt = " ".join(read_text(caption, "caption", "is").split())
            if prompt:
                found.append(LoggedPicture(prompt, prompt, image, {}))
    return found
