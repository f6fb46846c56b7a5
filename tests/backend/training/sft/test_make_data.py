"""Which answers become examples, which prompts are held out, which rewrite's pictures are the best."""

import json

import pytest

from reprise.backend.core.errors import AnswerRefused, BadInput, Interrupted, RepriseError, RewardFailed
from reprise.backend.core.types import Rewrite
from reprise.backend.rewards.text import Length
from reprise.backend.storage.cache import Cache
from reprise.backend.storage.outputs import check_made
from reprise.backend.training.common.offload import StageTimer
from reprise.backend.training.rollouts.prompts import TrainingPrompt
from reprise.backend.training.rollouts.scoring import PictureScorer
from reprise.backend.training.sft.answers import AnswerFolder
from reprise.backend.training.sft.data import RewriteExample
from reprise.backend.training.sft.make_data import ExampleMaker, held_out, keep_best

from ..world import FailsAlways, FailsOnGreen, Redness, WordRenderer

ASKED = [TrainingPrompt(prompt=f"a {thing}") for thing in ("star", "ring", "cross")]
REFUSED = AnswerRefused("no")


class Writer:
    """Answers by a function of (prompt, variant), and remembers what it was asked."""

    name, fingerprint = "writer", "writer-1"

    def __init__(self, answer=lambda prompt, variant: rewrite(f"{prompt} {variant}")):
        self.answer, self.asked = answer, []

    def rewrite_rows(self, rows, seed, on_rewrite, should_stop=None):
        for number, row in enumerate(rows):
            self.asked.append((row.prompt, row.variant))
            on_rewrite(number, self.answer(row.prompt, row.variant))


def rewrite(prompt, reason="r"):
    return Rewrite(reason, prompt, "writer")


def unreadable(prompt):
    return Rewrite("", prompt, "writer", fallback="the answer has no <prompt>")


def maker(tmp_path, asked=ASKED, **settings):
    return ExampleMaker(asked, AnswerFolder(tmp_path / "answers", "writer", 0), **settings)


def rewrites(made):
    return {prompt: [example.rewrite for example in some] for prompt, some in made.examples().items()}


def test_each_variant_becomes_an_example(tmp_path):
    made, seen = maker(tmp_path, variants=2), []
    made.write(Writer(), lambda *done: seen.append(done))
    assert rewrites(made) == {f"a {x}": [f"a {x} 0", f"a {x} 1"] for x in ("star", "ring", "cross")}
    assert seen == [(i, 6) for i in range(1, 7)]
    assert made.counts() == {"prompts": 3, "answers": 6, "unusable": {}, "duplicates": 0}


def test_unusable_answers_are_counted_and_requested_again(tmp_path):
    """Unreadable, without a reason, unfit as an example; up to `retries` more of each prompt."""
    plays = {
        ("a star", 0): unreadable("a star"),
        ("a ring", 1): rewrite("x", reason=" "),
        ("a ring", 2): rewrite("y", reason="<prompt>"),
    }
    writer = Writer(lambda prompt, variant: plays.get((prompt, variant), rewrite(f"{prompt} {variant}")))
    made = maker(tmp_path, variants=2, retries=2)
    made.write(writer)
    assert rewrites(made) == {
        "a star": ["a star 1", "a star 2"],
        "a ring": ["a ring 0", "a ring 3"],
        "a cross": ["a cross 0", "a cross 1"],
    }
    assert len(writer.asked) == len(set(writer.asked)) == 9
    unusable = made.counts()["unusable"]
    assert sorted(unusable.values()) == [1, 1, 1] and "the answer has no <reason>" in unusable
    assert any("cannot be read back" in why for why in unusable)


def test_retries_are_limited(tmp_path):
    writer = Writer(lambda prompt, variant: unreadable(prompt) if prompt == "a star" else rewrite(prompt))
    made = maker(tmp_path, retries=3)
    made.write(writer)
    assert [v for p, v in writer.asked if p == "a star"] == [0, 1, 2, 3] and len(writer.asked) == 6
    assert made.counts()["unusable"] == {"the answer has no <prompt>": 4}


def test_duplicates_are_dropped_and_filters_keep_rewrites_with_full_scores(tmp_path):
    long = " ".join(["word"] * 20)
    made = maker(tmp_path, variants=3, retries=1, filters={"length": Length()})
    made.write(Writer(lambda prompt, variant: rewrite("short" if variant == 0 else long)))
    assert rewrites(made) == {one.prompt: [long] for one in ASKED}
    assert made.counts() == {
        "prompts": 3,
        "answers": 12,
        "duplicates": 6,
        "unusable": {"the answer's length is not right": 3},
    }


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Interrupted, RepriseError])
def test_killed_and_resumed_equals_never_killed(tmp_path, stop):
    def answer(prompt, variant):
        return unreadable(prompt) if (prompt, variant) == ("a ring", 0) else rewrite(f"{prompt} {variant}")

    whole = maker(tmp_path / "whole", variants=2)
    whole.write(Writer(answer))
    writers = []
    for at in (3, 2, 9):

        def play(prompt, variant, at=at):
            if len(writers[-1].asked) == at:
                raise stop
            return answer(prompt, variant)

        writers.append(Writer(play))
        made = maker(tmp_path, variants=2)
        try:
            made.write(writers[-1])
        except stop:
            writers[-1].asked.pop()
        with made.answers.path.open("a") as file:
            file.write('{"prompt": "a st')  # as a process that was killed leaves it
    asked = [row for writer in writers for row in writer.asked]
    assert len(asked) == len(set(asked)) == 7
    again = maker(tmp_path, variants=2)
    assert again.missing() == [] and again.examples() == whole.examples() and again.counts() == whole.counts()


def test_only_new_prompts_and_variants_are_requested(tmp_path):
    maker(tmp_path, ASKED[:2], variants=1).write(Writer())
    made, writer = maker(tmp_path, variants=2), Writer()
    made.write(writer)
    assert writer.asked == [("a star", 1), ("a ring", 1), ("a cross", 0), ("a cross", 1)]
    fewer = maker(tmp_path, ASKED[1:], variants=1)
    assert fewer.missing() == [] and rewrites(fewer) == {"a ring": ["a ring 0"], "a cross": ["a cross 0"]}


def test_a_refused_prompt_is_no_reason_to_stop(tmp_path):
    """It is not asked again, either: what is refused once is refused as another variant, too."""
    writer = Writer(lambda prompt, variant: REFUSED if prompt == "a star" else rewrite(prompt))
    made = maker(tmp_path, variants=2)
    made.write(writer)
    assert rewrites(made)["a star"] == [] and made.counts()["unusable"] == {"no": 2}
    assert len(writer.asked) == 6 and maker(tmp_path, variants=2).missing() == []


def test_a_server_that_refuses_all_requests_stops_the_call_and_nothing_is_lost(tmp_path):
    """As where the money is gone: what was refused then is asked for again."""
    asked = [TrainingPrompt(prompt=f"prompt {i}") for i in range(30)]
    writer = Writer(lambda prompt, variant: rewrite(prompt) if len(writer.asked) <= 5 else REFUSED)
    with pytest.raises(AnswerRefused):
        maker(tmp_path, asked).write(writer)
    assert len(writer.asked) == 5 + 8
    made, later = maker(tmp_path, asked), Writer()
    made.write(later)
    assert len(later.asked) == 25 and all(made.examples().values())


def test_a_model_without_any_usable_answer_is_given_up(tmp_path):
    asked = [TrainingPrompt(prompt=f"prompt {i}") for i in range(99)]
    writer = Writer(lambda prompt, variant: unreadable(prompt))
    with pytest.raises(RepriseError, match="none of the first 32 answers of writer .*no <prompt>; take"):
        maker(tmp_path, asked).write(writer)
    assert len(writer.asked) == 32


def test_other_rewriters_answers_are_not_mixed_up(tmp_path):
    maker(tmp_path).write(Writer())
    for name, seed, words in (("other", 0, "--rewriter writer, not other"), ("writer", 1, "--seed 0, not 1")):
        with pytest.raises(BadInput, match=words):
            AnswerFolder(tmp_path / "answers", name, seed)
    changed = Writer()
    changed.fingerprint = "writer-2"
    with pytest.raises(BadInput, match="other weights or settings"):
        maker(tmp_path).write(changed)


@pytest.mark.parametrize("line", ["{", '{"prompt": "a star"}', '{"prompt": "a star", "variant": 0, "x": 1}'])
def test_a_damaged_line_is_named(tmp_path, line):
    maker(tmp_path).write(Writer())
    path = tmp_path / "answers" / "answers.jsonl"
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(BadInput, match="answers.jsonl, line 1: .*delete this line"):
        maker(tmp_path)
    (tmp_path / "answers" / "begun.json").write_text("{}")
    with pytest.raises(BadInput, match="begun.json: rewriter"):
        maker(tmp_path)


def test_no_prompt_is_on_both_sides_or_changes_sides():
    asked = [TrainingPrompt(prompt=f"prompt {i}") for i in range(400)]
    aside = held_out(asked, 0.1, 0)
    assert 25 < len(aside) < 55
    assert held_out(asked[:200], 0.1, 0) == aside & {one.prompt for one in asked[:200]}
    assert held_out(asked, 0.1, 1) != aside
    # Paraphrases of one meaning go together.
    pairs = [
        TrainingPrompt(prompt=f"{word} {i}", judged_as=f"prompt {i}") for i in range(50) for word in "ab"
    ]
    for share in (1e-9, 0.3, 1 - 1e-9):
        aside = held_out(pairs, share, 0)
        assert 0 < len(aside) < len(pairs)
        assert {p[2:] for p in aside if p[0] == "a"} == {p[2:] for p in aside if p[0] == "b"}
    with pytest.raises(BadInput, match="two prompts at least"):
        held_out(pairs[:2], 0.5, 0)


def examples(*words):
    return {
        one.prompt: [
            RewriteExample(prompt=one.prompt, reason="r", rewrite=f"a {word} {one.prompt}") for word in words
        ]
        for one in ASKED
    }


def scorer(tmp_path, *rewards):
    made = {reward.spec.name: reward for reward in rewards}
    return PictureScorer(WordRenderer(), made, Cache(tmp_path / "pictures"), StageTimer())


def test_the_rewrite_with_the_best_pictures_is_chosen(tmp_path):
    at = scorer(tmp_path, Redness())
    best, rows = keep_best(ASKED, examples("green", "red", "blue"), at, {"redness": 1.0}, [5, 6])
    assert {p: [e.rewrite for e in some] for p, some in best.items()} == {
        one.prompt: [f"a red {one.prompt}"] for one in ASKED
    }
    assert len(rows) == 3 and all(row["best"].startswith("a red") and len(row["scores"]) == 4 for row in rows)
    # All of a prompt from the same seeds; a second call draws nothing.
    drawn = [job for call in at.renderer.calls for job in call]
    assert len(drawn) == 3 * 4 * 2 and {job.seed for job in drawn} == {5, 6}
    again = scorer(tmp_path, Redness())
    assert keep_best(ASKED, examples("green", "red", "blue"), again, {"redness": 1.0}, [5, 6]) == (best, rows)
    assert again.renderer.calls == []


def test_rewrites_worse_than_the_prompt_as_typed_are_left_out(tmp_path):
    """Neither word is drawn, so a rewrite without one is drawn as the prompt is: no worse, and kept."""
    asked = [TrainingPrompt(prompt="a red star"), TrainingPrompt(prompt="a star")]
    made = {
        "a red star": [RewriteExample(prompt="a red star", reason="r", rewrite="a blue star")],
        "a star": [RewriteExample(prompt="a star", reason="r", rewrite="a large star")],
    }
    best, rows = keep_best(asked, made, scorer(tmp_path, Redness()), {"redness": 1.0}, [5])
    assert best == {"a red star": [], "a star": made["a star"]}
    assert [row["best"] for row in rows] == [None, "a large star"]


def test_pictures_that_cannot_be_scored(tmp_path):
    at = scorer(tmp_path, FailsOnGreen())
    best, rows = keep_best(ASKED, examples("green", "blue"), at, {"fails-on-green": 1.0}, [5])
    assert all(some[0].rewrite.startswith("a blue") for some in best.values())
    assert all("green" in row["failed"]["fails-on-green"] for row in rows)
    asked = [TrainingPrompt(prompt=f"prompt {i}") for i in range(9)]
    made = {one.prompt: [RewriteExample(prompt=one.prompt, reason="r", rewrite="w")] for one in asked}
    with pytest.raises(RewardFailed, match="scored no picture of 8 prompts; the last: .*the judge is down"):
        keep_best(asked, made, scorer(tmp_path / "down", FailsAlways()), {"fails-always": 1.0}, [5])


def test_a_file_made_by_someone_else_is_not_overwritten(tmp_path):
    made = maker(tmp_path)
    made.write(Writer())
    path = tmp_path / "data.jsonl"
    path.write_text("mine\n")
    with pytest.raises(BadInput, match="not made by this command"):
        made.answers.save(path, made.examples()["a star"])
    path.unlink()
    for some in (made.examples()["a star"], made.examples()["a ring"]):
        made.answers.save(path, some)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"prompt": "a ring", "reason": "r", "rewrite": "a ring 0"}
    ]
    check_made(maker(tmp_path).answers.folder, path)  # a later call knows it
