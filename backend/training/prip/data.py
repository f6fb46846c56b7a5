"""What PRIP learns from: pictures of a log, by how rewards scored them.

Source: PRIP (arXiv 2407.00247), sections 3.3 and 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...core.errors import BadInput
from ...core.seeds import seed_of
from ...factory import reward_spec
from ...rewards.scales import to_unit_range
from ..common.data import check_lost
from ..rollouts.picture_log import LoggedPicture, read_log


def drawn_records(path: Path, log: Callable[[str], None]) -> list[LoggedPicture]:
    """The records of a log whose pictures exist. Raises BadInput where many are gone."""
    records = read_log(path)
    drawn = [record for record in records if record.image is not None]
    if len(drawn) < len(records):
        raise BadInput(
            f"{len(records) - len(drawn)} of {len(records)} lines of {path} have no image yet; "
            f"`reprise data pictures {path}` draws them"
        )
    found = [record for record in drawn if record.picture.is_file()]
    check_lost(
        len(drawn) - len(found),
        len(drawn),
        f"the pictures of {path}",
        "are gone",
        "bring the pictures back",
        log,
    )
    return found


def well_scored(records: Sequence[LoggedPicture], least: Mapping[str, float]) -> list[LoggedPicture]:
    """The records whose scores are not below `least`. Raises BadInput where none is, or none has scores."""
    for name, score in least.items():
        if not any(name in record.scores for record in records):
            raise _unscored(name, records)
        best = max(record.scores[name] for record in records if name in record.scores)
        records = [record for record in records if record.scores.get(name, -math.inf) >= score]
        if not records:
            raise BadInput(f"no picture has {score:g} of {name!r}, at most {best:.3g}; lower least")
    return list(records)


def preferred_records(
    records: Sequence[LoggedPicture],
    rewards: Mapping[str, float],
    how: str,
    seed: int,
    log: Callable[[str], None],
) -> list[LoggedPicture]:
    """For each user prompt the record whose picture is the target, in the order of the prompts.

    `how` "best": i* = arg max of the weighted mean of `rewards` (name -> weight); of a tie the first. A
    reward of this project is brought to 0..1 by its range, another is taken as it is. "random": any, chosen
    by the seed. Raises BadInput where there are no scores to choose by.
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


def _unscored(name: str, records: Sequence[LoggedPicture]) -> BadInput:
    known = sorted({other for record in records for other in record.scores})
    return BadInput(
        f"the log has no scores of {name!r}, only of {', '.join(known) or 'nothing'}; add them "
        f"with `reprise data pictures LOG --reward {name}`"
    )
