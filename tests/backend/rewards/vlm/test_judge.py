"""The VLM judge: tuned, as a checklist, as a grade, and by its names."""

import json
import math
import shutil

import pytest

from reprise.backend.core.errors import BadInput, CheckpointError, RewardFailed, UnknownName
from reprise.backend.core.interfaces import Critic, PreviewReward
from reprise.backend.core.scoring import judge_for_previews
from reprise.backend.factory import open_judge, open_reward, parse_judge, parse_reward, parse_weights
from reprise.backend.rewards.vlm import judge as vlm_module
from reprise.backend.rewards.vlm.calibration import Calibration
from reprise.backend.rewards.vlm.judge import (
    MODES,
    TunedSettings,
    VLMChecklist,
    VLMCritic,
    VLMGrade,
    VLMJudge,
    fingerprint_of,
    vlm_judge,
)
from reprise.backend.rewards.vlm.questions import GRADE, PARTS, QUESTIONS

from .played_vlm import IMAGES, Played

# A judge that was tuned here


def test_a_critic_explains_pictures_that_do_not_match():
    played = Played({"a dog": 0.2}, ["  there is no dog ; it is a cat"])
    critic = VLMCritic(played, "critique")
    right, wrong = critic.criticize(IMAGES[:2], ["a cat", "a dog"])
    assert isinstance(critic, Critic) and right.satisfied and not right.critique
    assert wrong.critique == "there is no dog ; it is a cat"
    assert wrong.faults == ("there is no dog", "it is a cat")
    assert critic.score(IMAGES[:2], ["a cat", "a dog"]) == [0.9, 0.2] and len(played.texts) == 1
    with pytest.raises(RewardFailed, match="does not say why"):
        VLMCritic(Played({"a dog": 0.2}, [" "]), "critique").criticize(IMAGES[:1], ["a dog"])


TUNED = {
    "questions": ["match", "clarity"],
    "prompts": ["ab"],
    "calibration": {"match": {"temperature": 2.0, "bias": 0.0}},
}


def test_each_question_has_its_own_calibration():
    tuned = TunedSettings(calibrations={"match": Calibration(2.0), "clarity": Calibration(0.5)})
    judge = VLMJudge(Played(), "match", tuned)
    assert judge.score(IMAGES[:1], ["a cat"]) == [pytest.approx(0.75)]  # odds of 9, and of 3
    assert VLMJudge(Played(), "potential", tuned).score(IMAGES[:1], ["a cat"]) == [0.9]


def test_previews_are_judged_by_potential():
    """PARM's questions where a picture would be matched; what a model was not tuned on it is not asked."""
    for mode, made in (("match", VLMJudge), ("critique", VLMCritic)):
        judge = made(Played(), mode)
        looking = judge_for_previews(judge)
        assert isinstance(looking, PreviewReward) and not isinstance(judge, PreviewReward)
        assert looking.vlm is judge.vlm and looking.spec.name.endswith("#potential")
        assert looking.clarity(IMAGES[:1], ["a cat"]) == [0.9] and judge_for_previews(looking) is looking
    tuned = VLMJudge(Played(), "match", TunedSettings(frozenset({"match", "potential"})))
    assert judge_for_previews(tuned).clarity(IMAGES[:1], ["a cat"]) is None
    orm = VLMJudge(Played(), "match", TunedSettings(frozenset({"match"})))
    assert judge_for_previews(orm) is orm and judge_for_previews(VLMGrade(Played(), "score")).mode == "score"


def test_a_tuned_folder_brings_its_questions(llava, caplog):
    assert vlm_judge(str(llava), device="cpu").tuned == TunedSettings()
    (llava / "reprise.json").write_text(json.dumps(TUNED))
    tuned = vlm_judge(f"{llava}#clarity", device="cpu").tuned
    assert tuned == TunedSettings(
        frozenset({"match", "clarity"}), {"match": Calibration(2.0)}, frozenset({"ab"})
    )
    assert not caplog.records
    assert vlm_judge(f"{llava}#potential", device="cpu").clarity is not None
    assert "was not trained on 'potential'" in caplog.text
    assert type(vlm_judge(str(llava), device="cpu")) is VLMJudge
    (llava / "reprise.json").write_text(json.dumps({**TUNED, "questions": ["match", "critique"]}))
    assert isinstance(vlm_judge(str(llava), device="cpu"), VLMCritic), "it can say what is wrong"
    for text in (
        "{",
        "[]",
        '{"calibration": {"clarity": {"temperature": 0, "bias": 0}}}',
        '{"calibration": {"clarity": 2}}',
        '{"calibration": {"beauty": {"temperature": 1, "bias": 0}}}',
    ):
        (llava / "reprise.json").write_text(text)
        with pytest.raises(CheckpointError, match="reprise.json is damaged"):
            vlm_judge(str(llava), device="cpu")


def test_a_fingerprint_depends_on_files_and_question(llava):
    before = fingerprint_of(str(llava))
    assert fingerprint_of(f"{llava}#match") == before != fingerprint_of(f"{llava}#clarity")
    assert vlm_judge(f"{llava}#match", device="cpu").fingerprint == fingerprint_of(f"{llava}#match")
    (llava / "reprise.json").write_text(json.dumps(TUNED))
    assert fingerprint_of(str(llava)) != before
    assert fingerprint_of("m@http://h/v1#score") == "m@http://h/v1 score"


def test_a_runs_final_folder_is_named_after_the_run(llava, tmp_path):
    final = shutil.copytree(llava, tmp_path / "my-judge" / "final")
    assert vlm_judge(str(final), device="cpu").spec.name == "vlm:my-judge"


# Checklists and grades


def test_a_checklist_multiplies_probabilities_and_names_missing_parts():
    vlm = Played({"two cats": 0.4, "a hat": 0.5, "night": 0.2}, ["- two cats\n- a hat\n- night"])
    judge = VLMChecklist(vlm)
    assert isinstance(judge, Critic) and not isinstance(VLMJudge(vlm), Critic)
    prompts = ["two cats with a hat, at night", "two cats with a hat, at night"]
    assert judge.score(IMAGES[:2], prompts) == pytest.approx([0.4 * 0.5 * 0.2] * 2)
    assert vlm.asked[0] == PARTS.format(prompts[0]) and vlm.asked[1] == QUESTIONS["match"].format("two cats")
    assert len(vlm.asked) == 1 + 2 * 3  # the list once
    verdict = judge.criticize(IMAGES[:1], prompts[:1])[0]
    assert verdict.faults == ("it does not show two cats", "it does not show night")
    assert not verdict.satisfied and verdict.critique == "; ".join(verdict.faults)
    (content,) = VLMChecklist(Played(texts=["two cats"])).criticize(IMAGES[:1], prompts[:1])
    assert content.satisfied and content.critique == "" and content.faults == ()


@pytest.mark.parametrize(("text", "cut"), [("Sure! I cannot see anything.", False), ("two cats\ntwo", True)])
def test_rules_split_a_prompt_if_the_model_writes_no_list(caplog, text, cut):
    judge = VLMChecklist(Played(texts=[text], cut=cut))
    assert judge.parts("two cats and a hat") == ("two cats", "a hat")
    assert "rules split it" in caplog.text


def test_a_checklist_works_with_a_real_model(vlm, monkeypatch):
    monkeypatch.setattr(vlm_module, "LIST_TOKENS", 12)
    judge = VLMChecklist(vlm)
    parts = judge.parts("a red circle and a cat")
    (score,) = judge.score(IMAGES[:1], ["a red circle and a cat"])
    one_by_one = [VLMJudge(vlm).score(IMAGES[:1], [part])[0] for part in parts]
    assert score == pytest.approx(math.prod(one_by_one), abs=1e-4)


def test_grades_become_scores():
    judge = VLMGrade(Played(texts=["8", "**7.5**/10"]), "score")
    assert judge.score(IMAGES[:2], ["a cat"] * 2) == [0.8, 0.75]
    assert judge.vlm.asked == [GRADE.format("a cat")] * 2
    for text in ("", "very good", "11", "-3", "7 or 8"):
        with pytest.raises(RewardFailed, match="expected a grade from 0 to 10, it answered"):
            VLMGrade(Played(texts=[text]), "score").score(IMAGES[:1], ["a cat"])


# Names


def test_sources_are_found_by_name(vlm_folders, monkeypatch):
    judge = open_reward(f"vlm:{vlm_folders / 'llava'}#checklist")
    assert judge.spec.name == "vlm:llava#checklist" and isinstance(judge, Critic)
    far = open_reward("vlm:qwen2.5vl:7b@http://127.0.0.1:1/v1#potential")
    assert far.spec.name == "vlm:qwen2.5vl:7b#potential" and (far.spec.low, far.spec.high) == (0, 1)
    assert set(MODES) == {"match", "clarity", "potential", "critique", "checklist", "score"}
    monkeypatch.setenv("REPRISE_MODELS", str(vlm_folders.parent))
    (vlm_folders.parent / "judges").symlink_to(vlm_folders)
    assert open_reward("vlm:llava").spec.name == "vlm:llava"
    assert open_reward("vlm:llava#critique").spec.name == "vlm:llava", "its scores are those of match"
    snapshot = vlm_folders.parent / "hub" / "models--tiny--chat" / "snapshots" / "0123"
    shutil.copytree(vlm_folders / "llava", snapshot)
    (refs := snapshot.parents[1] / "refs").mkdir()
    (refs / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(vlm_folders.parent / "hub"))
    assert open_reward("vlm:tiny/chat#score").spec.name == "vlm:chat#score"
    weights = parse_weights([f"vlm:{vlm_folders / 'llava'}=2", "shapeworld"])
    assert open_judge(parse_judge(None, weights)).spec.name == "mix"


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("vlm", BadInput, "names no model; give vlm:FOLDER or vlm:MODEL@URL"),
        ("vlm:", BadInput, "names no model"),
        ("vlm:@http://127.0.0.1/v1", BadInput, "no model before its address"),
        ("vlm:nowhere", CheckpointError, "there is no folder nowhere, and no model .* give vlm:FOLDER or"),
        ("vlm:nobody/nowhere", CheckpointError, "Hugging Face's cache; run `hf download nobody/nowhere`"),
        ("vlm:no/such/folder", CheckpointError, "there is no folder no/such/folder"),
        ("vlm:nowhere#chekclist", UnknownName, "did you mean 'checklist'"),
        ("vlm:m@http://u:p@h/v1", BadInput, "expected an address"),
    ],
)
def test_invalid_sources_are_refused(name, error, says):
    with pytest.raises(error, match=says) as caught:
        parse_reward(name)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
