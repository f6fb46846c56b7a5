"""What a judge learns from: reading, splitting, balancing; and making it with a renderer."""

import json

import pytest
import torch

from reprise.backend.core.errors import BadInput, Interrupted, RepriseError
from reprise.backend.core.types import RewardSpec, Verdict
from reprise.backend.preferences.store import Store
from reprise.backend.renderers.fake import FakeRenderer
from reprise.backend.rewards.base import BaseReward
from reprise.backend.rewards.vlm.questions import CRITIQUE, QUESTIONS
from reprise.backend.shapeworld.prompts import prompts as shapeworld_prompts
from reprise.backend.training.judge import data as judge_data
from reprise.backend.training.judge import make_data as judge_log
from reprise.backend.training.judge.data import (
    JudgeLine,
    balanced,
    check_teaches,
    evenly_chosen,
    present,
    prompt_mark,
    read_examples,
    split_key,
    split_of,
)
from reprise.backend.training.judge.make_data import Labels, default_looks, likeness, make_data, read_sources

PROMPTS = [f"a picture of number {n}" for n in range(20)]
LABELS = Labels(0.5, test_share=0.25, calibration_share=0.25)


class FirstSquare(BaseReward):
    """Red of the top left corner; has a word for what is not red."""

    spec = RewardSpec("first-square", 0.0, 1.0)

    def __init__(self):
        self.asked = 0

    def score(self, images, prompts):
        self.asked += len(prompts)
        return images[:, 0, 0, 0].tolist()

    def criticize(self, images, prompts):
        return [Verdict(False, f"{prompt} is not red") for prompt in prompts]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(tmp_path, prompts, renderer=None, reward=None, name="judge.jsonl", labels=LABELS, **options):
    renderer = renderer or FakeRenderer()
    return make_data(
        tmp_path / name,
        read_sources(str(prompts), 4, 0),
        lambda: renderer,
        reward or FirstSquare(),
        labels,
        at_once=16,
        **options,
    )


# Making


def test_labels(tmp_path, prompts):
    made = make(tmp_path, prompts, looks=[2, 7])
    examples = read_examples(tmp_path / "judge.jsonl")
    assert made["pictures"] == 80 and made["prompts"] == 20
    assert sum(made["examples"].values()) == len(examples)
    finished = {(one.line.prompt, one.line.seed): one for one in examples if one.line.question == "match"}
    for one in examples:
        picture = Store(tmp_path / "judge.jsonl.pictures", create=True).image(one.picture.stem)
        red = picture[0, 0, 0].item() > 0.5
        if one.line.question == "match":
            assert one.line.label is red and one.line.step is None
        elif one.line.question == "critique":
            assert not red and one.answer == f"{one.line.prompt} is not red"
        elif one.line.question == "potential" and (one.line.prompt, one.line.seed) in finished:
            assert one.line.label is finished[one.line.prompt, one.line.seed].line.label
    clarity = [one.line for one in examples if one.line.question == "clarity"]
    clear = {step: [line.label for line in clarity if line.step == step] for step in (2, 7)}
    assert not any(clear[2]) and any(clear[7]), "two eighths of a picture show nothing, seven a lot"
    asked = next(one for one in examples if one.line.question == "potential")
    assert asked.question == QUESTIONS["potential"].format(asked.line.prompt)
    why = next(one for one in examples if one.line.question == "critique")
    assert why.question == CRITIQUE.format(why.line.prompt)


def test_as_many_yes_as_no_and_no_prompt_in_two_splits(tmp_path, prompts):
    make(tmp_path, prompts, looks=[2, 4, 7])
    groups, splits = {}, {}
    for row in rows_of(tmp_path / "judge.jsonl"):
        splits.setdefault(row["prompt"], set()).add(row.get("split", "train"))
        if row["question"] == "critique":
            continue
        step = None if row["question"] == "clarity" else row.get("step")
        groups.setdefault((row.get("split"), row["question"], step), []).append(row["label"])
    taught = [labels for (split, *_), labels in groups.items() if split is None]
    assert len(taught) >= 5 and all(2 * sum(labels) == len(labels) for labels in taught)
    others = [labels for (split, *_), labels in groups.items() if split is not None]
    assert any(2 * sum(labels) != len(labels) for labels in others), "figures are of what there is"
    assert all(len(one) == 1 for one in splits.values()) and len(set.union(*splits.values())) == 3


def test_nothing_is_drawn_twice(tmp_path, prompts):
    first, reward = FakeRenderer(), FirstSquare()
    make(tmp_path, prompts, first, reward)
    before, asked = (tmp_path / "judge.jsonl").read_bytes(), reward.asked
    again = FakeRenderer()
    make(tmp_path, prompts, again, reward)
    assert not again.calls and reward.asked == asked
    assert (tmp_path / "judge.jsonl").read_bytes() == before
    make(tmp_path, prompts, again, reward, labels=Labels(0.8))
    assert not again.calls and (tmp_path / "judge.jsonl").read_bytes() != before
    with pytest.raises(BadInput, match="another renderer, reward or steps"):
        make(tmp_path, prompts, looks=[3])
    again.fingerprint = "trained on"
    more = tmp_path / "more.txt"
    more.write_text("another picture")
    with pytest.raises(BadInput, match="another renderer, reward or steps"):
        make(tmp_path, more, again)


def test_pictures_wrong_by_another_threshold_are_criticised_too(tmp_path, prompts):
    make(tmp_path, prompts, labels=Labels(0.3, test_share=0.25, calibration_share=0.25))
    few = [row["prompt"] for row in rows_of(tmp_path / "judge.jsonl") if row["question"] == "critique"]
    make(tmp_path, prompts, FakeRenderer(), labels=Labels(0.7, test_share=0.25, calibration_share=0.25))
    rows = rows_of(tmp_path / "judge.jsonl")
    many = [row["prompt"] for row in rows if row["question"] == "critique"]
    assert len(few) < len(many) and all(row["text"].endswith("is not red") for row in rows if "text" in row)


def test_a_stopped_call_goes_on(tmp_path, prompts):
    whole = make(tmp_path, prompts, name="whole.jsonl")

    def stop(done, of):
        if done == 16:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        make(tmp_path, prompts, progress=stop)
    assert not (tmp_path / "judge.jsonl").exists()
    rollouts = tmp_path / "judge.jsonl.rollouts.jsonl"
    with rollouts.open("a") as file:  # as a kill leaves it
        file.write('{"key": "ha')
    rest = FakeRenderer()
    made = make(tmp_path, prompts, rest)
    assert sum(map(len, rest.calls)) == 64 and made["examples"] == whole["examples"]
    assert (tmp_path / "judge.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text().replace(
        "whole.jsonl", "judge.jsonl"
    )


def test_pictures_that_are_drawn_already(tmp_path, prompts):
    make(tmp_path, prompts)
    store = Store(tmp_path / "judge.jsonl.pictures", create=True)
    rows = [row for row in rows_of(tmp_path / "judge.jsonl") if row["question"] == "match"]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"prompt": r["prompt"], "image": r["image"]}) + "\n" for r in rows))
    made = make_data(
        tmp_path / "more.jsonl", read_sources(str(log), 1, 0), lambda: None, FirstSquare(), LABELS
    )
    assert {row["question"] for row in rows_of(tmp_path / "more.jsonl")} == {"match", "critique"}
    assert made["examples"]["train/match"] == sum(row.get("split") is None for row in rows)
    store.image_path(rows[0]["image"].split("/")[-1][:-4]).unlink()
    with pytest.raises(BadInput, match="there is no picture"):
        make_data(tmp_path / "gone.jsonl", read_sources(str(log), 1, 0), lambda: None, FirstSquare(), LABELS)


def test_pictures_that_are_all_wrong_make_no_data(tmp_path, prompts):
    class NeverRight(FirstSquare):
        criticize = None

    with pytest.raises(BadInput, match="all are right, or all are wrong; draw more prompts"):
        make(tmp_path, prompts, reward=NeverRight(), labels=Labels(2.0), looks=[])
    assert not (tmp_path / "judge.jsonl").exists()


def test_a_full_disk(tmp_path, prompts, monkeypatch):
    monkeypatch.setattr(Store, "has_image", lambda self, name: False)
    with pytest.raises(RepriseError, match="cannot be written .* nothing was recorded: make room"):
        make(tmp_path, prompts)
    assert not (tmp_path / "judge.jsonl").exists()


def test_likeness():
    draw = torch.Generator().manual_seed(0)
    picture = torch.rand(16, 16, 3, generator=draw)
    assert likeness(picture, picture) == pytest.approx(1)
    assert likeness(picture * 0.3 + 0.5, picture) == pytest.approx(1), "paler, as previews are"
    assert abs(likeness(torch.rand(16, 16, 3, generator=draw), picture)) < 0.3
    flat = torch.full((16, 16, 3), 0.5)
    assert likeness(flat, flat) == 1 and likeness(flat, flat + 0.2) == 0
    assert default_looks(16) == [2, 3, 4, 6, 8, 12] and default_looks(2) == [1]


# Reading


def test_bad_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    for line, said in {
        "": "holds no examples; `reprise data judge` makes them",
        "{": "line 1: not JSON",
        '{"prompt": "x", "question": "why", "image": "a.png"}': "question: input should be 'match'",
        '{"prompt": "x", "question": "match", "image": "a.png"}': 'match is answered with "label"',
        '{"prompt": "x", "question": "critique", "image": "a.png", "label": true}': 'answered with "text"',
        '{"prompt": " ", "question": "match", "image": "a.png", "label": true}': "the prompt is empty",
        '{"prompt": "x", "question": "match", "image": "a.png", "label": true, "step": 0}': "step: input",
    }.items():
        path.write_text(line + "\n")
        with pytest.raises(BadInput) as caught:
            read_examples(path)
        assert said in str(caught.value) and "\n" not in str(caught.value), line
    with pytest.raises(BadInput, match="cannot read the examples"):
        read_examples(tmp_path / "none.jsonl")


def test_missing_pictures(tmp_path, prompts):
    make(tmp_path, prompts)
    examples, said = read_examples(tmp_path / "judge.jsonl"), []
    examples[0].picture.unlink()
    kept = present(examples, said.append)
    assert 0 < len(examples) - len(kept) <= 3 and "they are gone" in said[0]
    for one in examples[: len(examples) // 2]:
        one.picture.unlink(missing_ok=True)
    with pytest.raises(BadInput, match="are gone; bring them back, or draw them again"):
        present(examples, said.append)


def line(prompt="x", question="match", label=True, **more):
    return JudgeLine(prompt=prompt, question=question, image="a.png", label=label, **more)


def test_equal_answers_teach_nothing():
    alike = [judge_data.JudgeExample(line(str(n)), None) for n in range(3)]
    with pytest.raises(BadInput, match="all 3 examples of 'match' to train on have the answer yes"):
        check_teaches(alike)
    check_teaches([*alike, judge_data.JudgeExample(line(label=False), None)])
    with pytest.raises(BadInput, match="no example of the split train"):
        check_teaches([])


def test_the_words_decide_the_split():
    splits = [split_of(f"prompt {n}", 0.2, 0.1) for n in range(2000)]
    assert splits.count("test") == pytest.approx(400, abs=60)
    assert splits.count("calibration") == pytest.approx(200, abs=50)
    assert split_of(" a  cat ", 0.5, 0.2) == split_of("a cat", 0.5, 0.2)
    assert {split_of(str(n), 1.0, 0.0) for n in range(50)} == {"test"}


def test_a_combination_is_in_one_split_in_all_its_wordings():
    kin = [
        "a photo of a red star and a blue ring",
        "a photo of a blue ring and a red star",
        "a photo of a blue ring and a red star on a pink background",
    ]
    assert len({split_key(prompt) for prompt in kin}) == 1 == len({prompt_mark(prompt) for prompt in kin})
    by_key = {}
    for case in shapeworld_prompts("train"):
        by_key.setdefault(case.key, set()).add(split_of(case.prompt, 0.3, 0.2))
    assert all(len(one) == 1 for one in by_key.values())
    assert set.union(*by_key.values()) == {"train", "calibration", "test"}


def test_held_out_prompts_of_shapeworld(tmp_path):
    held = {case.prompt for case in shapeworld_prompts("held-out")}
    sources = read_sources("shapeworld:3", 1, 0, "held-out")
    assert len(sources) == 18 and all(one.prompt in held for one in sources)
    assert not any(one.prompt in held for one in read_sources("shapeworld:3", 1, 0))


def test_which_lines_are_left_out_does_not_depend_on_their_order():
    lines = [line(str(n), label=n % 5 == 0) for n in range(50)]
    kept = balanced(lines)
    assert kept == balanced(lines[::-1]) and sum(one.label for one in kept) == 10 == len(kept) / 2
    examples = [judge_data.JudgeExample(one, None) for one in kept]
    assert len(evenly_chosen(examples, 7)) == 7 and evenly_chosen(examples[::-1], 7) == evenly_chosen(
        examples, 7
    )
    assert judge_log.LOOKS == tuple(sorted(judge_log.LOOKS))
