"""`evaluate judges`: accuracies and calibration errors by hand, intervals over prompts, resuming."""

import json

import pytest
import torch
from PIL import Image

from reprise.backend.cli.main import run
from reprise.backend.core.errors import BadInput
from reprise.backend.core.types import RewardSpec
from reprise.backend.evaluation.critiques import BLIND
from reprise.backend.evaluation.judges import MAJORITY, JudgeCase, evaluate_judges, make_answerer
from reprise.backend.rewards.base import BaseReward
from reprise.backend.rewards.vlm.calibration import Calibration
from reprise.backend.rewards.vlm.judge import TunedSettings, VLMJudge
from reprise.backend.rewards.vlm.local import VlmAnswer
from reprise.backend.rewards.vlm.questions import QUESTIONS
from reprise.backend.training.judge.data import prompt_mark

from ..rewards.vlm import tiny_vlm


class Brightness(BaseReward):
    spec = RewardSpec("brightness", 0.0, 1.0)

    def score(self, images, prompts):
        return images.mean((1, 2, 3)).tolist()


class Played:
    """A VLM that answers all questions right, except `potential`."""

    name, model = "played", None

    def __init__(self):
        self.asked = []

    def yes_probabilities(self, pictures, questions):
        self.asked += questions
        light = [sum(picture.getpixel((0, 0))) > 380 for picture in pictures]
        known = [0.8 if one else 0.2 for one in light]
        return [
            0.9 if question.startswith(QUESTIONS["potential"][:9]) and "Will" in question else p
            for p, question in zip(known, questions)
        ]


@pytest.fixture
def cases(tmp_path):
    """Five prompts, each with a light and a dark picture; previews get lighter with the step."""
    found = []
    for n in range(5):
        for light in (True, False):
            path = tmp_path / f"{n}-{light}.png"
            Image.new("RGB", (32, 32), ((204, 204, 204) if light else (51, 51, 51))).save(path)
            found += [JudgeCase("match", f"light {n}", path, light)]
            found += [
                JudgeCase(question, f"light {n}", path, light, step)
                for question in ("clarity", "potential")
                for step in (2, 4)
            ]
    return found


def test_accuracies_equal_those_computed_by_hand(cases):
    played = VLMJudge(Played())
    judges = {"played": lambda: make_answerer(played), "bright": lambda: make_answerer(Brightness())}
    result = evaluate_judges(judges, cases)
    figures, bright, blind = result["rows"]
    assert blind["name"] == MAJORITY and blind["tasks"]["match"] == [0.5, 0.5, 0.5] and not blind["cost"]
    assert figures["tasks"] == {"match": [1, 1, 1], "clarity": [1, 1, 1], "potential": [0.5, 0.5, 0.5]}
    assert figures["overall"][0] == pytest.approx(2.5 / 3, abs=1e-4)
    assert figures["cost"]["calibration error, match"] == pytest.approx(0.2, abs=1e-4)
    assert figures["cost"]["calibration error, potential"] == pytest.approx(0.4, abs=1e-4)
    assert bright["tasks"].keys() == {"match", "potential"} and bright["tasks"]["potential"][0] == 1
    steps, errors, apart = result["tables"]
    assert ["played, match", *["1.000 [1.000, 1.000]"] * 3] in apart["rows"]
    assert ["bright, match", "1.000 [1.000, 1.000]", None, None] in apart["rows"], "it answers one question"
    assert ["played, match", *["1.000 [1.000, 1.000]"] * 2] in steps["rows"], "for previews, too"
    assert ["played, potential", None, *["0.500 [0.500, 0.500]"] * 2] in apart["rows"], "it says yes to all"
    assert steps["columns"] == ["judge, question", "step 2", "step 4"]
    assert ["played, potential", "0.500 [0.500, 0.500]", "0.500 [0.500, 0.500]"] in steps["rows"]
    assert ["played, match", 10, "0.200 [0.200, 0.200]"] in errors["rows"]
    assert result["reliability"]["played, match"] == [[pytest.approx(0.2), 0, 5], [pytest.approx(0.8), 1, 5]]
    json.dumps(result, allow_nan=False)


def test_calibration_errors_equal_those_computed_by_hand(cases):
    sure = VLMJudge(Played(), tuned=TunedSettings(calibrations={"match": Calibration(1e-1)}))
    row, _ = evaluate_judges(
        {"sure": lambda: make_answerer(sure)}, [c for c in cases if c.question == "match"]
    )["rows"]
    assert row["cost"]["calibration error, match"] < 1e-3


def test_the_baseline_gives_the_more_frequent_answer_of_a_step(cases):
    """At step 2 no preview is clear, at step 4 four of five are: an accuracy of .9."""
    questions = [
        JudgeCase("clarity", c.prompt, c.picture, c.step == 4 and c.prompt != "light 0", c.step)
        for c in cases
        if c.question == "clarity"
    ]
    result = evaluate_judges({"played": lambda: make_answerer(VLMJudge(Played()))}, questions)
    assert result["rows"][-1]["tasks"]["clarity"][0] == 0.9
    (row,) = [row for row in result["tables"][0]["rows"] if row[0].startswith(MAJORITY)]
    assert row[1].startswith("1.000") and row[2].startswith("0.800")


def test_pair_accuracy_compares_pictures_of_one_prompt(tmp_path):
    """A judge that only knows which prompts fail is right about five of six pictures, and orders no pair."""
    Image.new("RGB", (32, 32), "white").save(tmp_path / "x.png")
    rights = {"easy": (True, True, False), "hard": (False, False, False)}
    questions = [
        JudgeCase("match", prompt, tmp_path / "x.png", right)
        for prompt, row in rights.items()
        for right in row
    ]
    judges = {"knows": lambda: lambda cases: [0.9 if case.prompt == "easy" else 0.1 for case in cases]}
    result = evaluate_judges(judges, questions)
    assert result["rows"][0]["tasks"]["match"][0] == pytest.approx(5 / 6, abs=1e-4)
    assert result["tables"][-1]["rows"] == [["knows, match", "0.500 [0.500, 0.500]"]]


def test_intervals_are_bootstrapped_over_prompts(cases):
    """All answers about one prompt of five are wrong; a resample has all of them or none."""
    wrong = [
        JudgeCase(c.question, c.prompt, c.picture, not c.right if c.prompt == "light 0" else c.right, c.step)
        for c in cases
        if c.question == "match"
    ]
    row, _ = evaluate_judges({"played": lambda: make_answerer(VLMJudge(Played()))}, wrong)["rows"]
    mean, low, high = row["tasks"]["match"]
    assert mean == 0.8 and (low, high) == (0.4, 1.0)  # 3 of 5 drawn and none, at 2.5 and 97.5 %


def test_a_second_call_reads_the_answers_from_the_journal(cases, tmp_path):
    first, again = Played(), Played()
    journal = tmp_path / "journal.jsonl"
    one = evaluate_judges(
        {"played": lambda: make_answerer(VLMJudge(first))},
        cases,
        journal=journal,
        fingerprints={"played": "a"},
    )
    previews = sum(case.question == "potential" for case in cases)  # these are also asked `match`
    assert len(first.asked) == len(cases) + previews
    two = evaluate_judges(
        {"played": lambda: make_answerer(VLMJudge(again))},
        cases,
        journal=journal,
        fingerprints={"played": "a"},
    )
    assert two == one and not again.asked
    evaluate_judges(
        {"played": lambda: make_answerer(VLMJudge(again))},
        cases,
        journal=journal,
        fingerprints={"played": "b"},
    )
    assert len(again.asked) == len(first.asked)
    with pytest.raises(BadInput, match="nothing to evaluate"):
        evaluate_judges({}, [])


def test_pictures_of_different_sizes_are_scored(tmp_path):
    found = []
    for side in (8, 12):
        path = tmp_path / f"{side}.png"
        Image.new("RGB", (side, side), "white").save(path)
        found.append(JudgeCase("match", "light", path, True))
    assert make_answerer(Brightness())(found) == [1.0, 1.0]
    assert torch.get_num_threads() >= 1


def lines_to(path, cases, **more):
    rows = [
        {
            "prompt": c.prompt.replace("light", "a circle"),
            "question": c.question,
            "image": str(c.picture),
            "label": c.right,
            **({"step": c.step} if c.step else {}),
            "split": "test",
            **more,
        }
        for c in cases
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_command_writes_the_table_and_the_page(cases, tmp_path, capsys):
    data, out = tmp_path / "test.jsonl", tmp_path / "out"
    lines_to(data, cases)
    assert run(["evaluate", "judges", "shapeworld", "--data", str(data), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["name"] == "judges" and result["rows"][0]["tasks"]["match"][0] == 0.5
    page = (out / "index.html").read_text()
    assert "Reliability" in page and "Accuracy by denoising step" in page
    assert json.loads((out / "result.json").read_text()) == result


class Critic(Played):
    """Returns the critiques that a test sets."""

    def generate(self, questions, pictures, most):
        return [VlmAnswer("There is no cat.; I see 2 dogs", False) for _ in questions]


def test_critique_shares_equal_those_computed_by_hand(cases):
    """Of six pictures four have a fault that is named; of 12 named faults 5 are true, of 7 true ones 5."""
    reasons = {
        "light 0": ("there is no cat", "I see 2 dogs; there is no cat"),
        "light 1": ("there is no cat", "it is dark"),
        "light 2": ("there is no bird", "I see 2 dogs"),
    }
    picture = cases[0].picture
    wrong = [
        JudgeCase("critique", prompt, picture, False, reason=reason)
        for prompt, two in reasons.items()
        for reason in two
    ]
    untaught = VLMJudge(Critic(), tuned=TunedSettings(frozenset({"match"})))
    judges = {
        "says": lambda: make_answerer(VLMJudge(Critic())),
        "bright": lambda: make_answerer(Brightness()),
        "untaught": lambda: make_answerer(untaught),
    }
    result = evaluate_judges(judges, [*cases, *wrong])
    table = result["tables"][-1]
    said, blind = table["rows"]
    assert said[:2] == ["says", 6] and [cell[:5] for cell in said[2:]] == ["0.667", "0.417", "0.714"]
    assert blind[:2] == [BLIND, 6] and [cell[:5] for cell in blind[2:]] == ["0.333", "0.286", "0.286"]
    assert result["rows"][0]["tasks"] == evaluate_judges(judges, cases)["rows"][0]["tasks"], (
        "answers of yes or no"
    )
    json.dumps(result, allow_nan=False)


def test_prompts_that_a_judge_was_trained_on_are_left_out(cases, tmp_path, capsys):
    tiny_vlm.idefics3(tmp_path / "vlm")
    taught = [prompt_mark("a circle 0"), prompt_mark("a circle 3")]
    (tmp_path / "vlm" / "reprise.json").write_text(json.dumps({"prompts": taught}))
    data = tmp_path / "test.jsonl"
    lines_to(data, [case for case in cases if case.question == "match"])
    words = ["evaluate", "judges", "shapeworld", f"vlm:{tmp_path / 'vlm'}", "--data", str(data), "--json"]
    assert run([*words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "4 of 10 questions are about prompts that one of these judges was trained on" in said.err
    assert json.loads(said.out)["settings"]["answers"] == 6
    everything = [prompt_mark(f"a circle {n}") for n in range(5)]
    (tmp_path / "vlm" / "reprise.json").write_text(json.dumps({"prompts": everything}))
    assert run([*words, "--out", str(tmp_path / "none")]) == 2
    assert "make others with `reprise data judge --held-out`" in capsys.readouterr().err


def test_bad_input_is_refused_in_one_line(cases, tmp_path, capsys):
    data = tmp_path / "test.jsonl"
    lines_to(data, cases, split="train")
    known = ["evaluate", "judges", "shapeworld", "--data", str(data)]
    for words, said in (
        (["evaluate", "judges", "--data", str(data)], "Missing argument 'JUDGE"),
        (["evaluate", "judges", "shapeworld"], "Missing option '--data'"),
        (known, "no questions of yes or no in the split 'test'"),
        ([*known, "--best-of", "4"], "No such option: --best-of"),
        (["evaluate", "judges", "shapeword", "--data", str(data)], "did you mean 'shapeworld'?"),
        (["evaluate", "judges", "shapeworld", "shapeworld", "--data", str(data)], "named twice"),
        (["evaluate", "judges", "vlm:embedded#clarity", "--data", str(data)], "leave off #clarity"),
    ):
        assert run(words) == 2, words
        caught = capsys.readouterr()
        assert said in caught.err and caught.err.count("\n") == 1 and not caught.out, words
