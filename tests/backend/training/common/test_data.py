"""What trainings learn from."""

import json

import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.training.common.data import (
    STARTED_WITH,
    check_same_data,
    nothing_left,
    pictures_digest,
    split_by_prompt,
)
from reprise.backend.training.rollouts.picture_log import LoggedPicture


def test_a_resumed_run_learns_from_the_data_it_started_with(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    now = {"lines": 3, "pictures": pictures_digest([file, file])}
    check_same_data(tmp_path, "log.jsonl", now, False)
    check_same_data(tmp_path, "log.jsonl", now, True)
    file.write_bytes(b"two")
    later = {"lines": 3, "pictures": pictures_digest([file])}
    with pytest.raises(BadInput, match="log.jsonl, or what it names, changed since"):
        check_same_data(tmp_path, "log.jsonl", later, True)
    (tmp_path / STARTED_WITH).write_text(
        json.dumps({"lines": 3})
    )  # earlier versions knew nothing of pictures
    check_same_data(tmp_path, "log.jsonl", later, True)
    with pytest.raises(BadInput, match="log.jsonl, or what it names, changed since"):
        check_same_data(tmp_path, "log.jsonl", {**later, "lines": 2}, True)
    with pytest.raises(BadInput, match="cannot read the picture .*gone.png: No such file"):
        pictures_digest([tmp_path / "gone.png"])


def test_whole_prompts_are_held_out():
    records = [LoggedPicture(f"p{i % 4}", f"s{i}", None, {}) for i in range(12)]
    training, held_out = split_by_prompt(records, 0.2)
    assert (len(training), len(held_out)) == (9, 3) and len({one.prompt for one in held_out}) == 1
    assert split_by_prompt(records, 0.0) == (records, [])
    assert split_by_prompt(records[:1], 0.5) == ([], records[:1])
    assert "eval_share=0.5 of 1 prompts leaves none to train on" in str(nothing_left(records[:1], 0.5))
