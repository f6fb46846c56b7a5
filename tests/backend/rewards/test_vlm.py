"""The VLM judge, on tiny real models of several architectures and on a server that plays."""

import base64
import io
import json
import math
import shutil

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from reprise.backend.calibration import Calibration
from reprise.backend.cli.roles import make_judge, make_reward, parse_weights
from reprise.backend.errors import (
    BadInput,
    CheckpointError,
    EndpointError,
    RewardFailed,
    UnknownName,
    Unsupported,
)
from reprise.backend.interfaces import Critic, PreviewReward
from reprise.backend.judging import image_scores, of_previews
from reprise.backend.rewards import vlm as vlm_module
from reprise.backend.rewards import vlm_local
from reprise.backend.rewards.vlm import (
    MODES,
    Tuned,
    VLMChecklist,
    VLMCritic,
    VLMGrade,
    VLMJudge,
    fingerprint_of,
    vlm_judge,
)
from reprise.backend.rewards.vlm_local import LocalVLM, Said, answer_tokens
from reprise.backend.rewards.vlm_questions import GRADE, PARTS, QUESTIONS

from ...fake_endpoint import Play, answer, closed_url, playing
from . import tiny_vlm

PROMPTS = ["a red circle", "two blue cats and a dog, at night", "x", "a big red ball on the table"]
IMAGES = torch.rand(16, 24, 40, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vlms")
    for name, build in tiny_vlm.BUILDERS.items():
        build(root / name)
    return root


@pytest.fixture(scope="module")
def loaded(folders):
    return {name: LocalVLM(folders / name, device="cpu") for name in tiny_vlm.BUILDERS}


@pytest.fixture(params=tiny_vlm.BUILDERS)
def vlm(request, loaded):
    return loaded[request.param]


def pictures(sizes):
    draw = torch.Generator().manual_seed(2)
    return [Image.fromarray((torch.rand(h, w, 3, generator=draw) * 255).byte().numpy()) for w, h in sizes]


class Played:
    """A VLM that answers from tables: part of a question -> P(yes), and a text to each in turn."""

    name, model = "played", None

    def __init__(self, likely=(), texts=(), cut=False):
        self.likely, self.texts, self.cut = dict(likely), list(texts), cut
        self.asked: list[str] = []

    def agree(self, pictures, questions):
        assert len(pictures) == len(questions)
        self.asked += questions
        return [next((p for part, p in self.likely.items() if part in q), 0.9) for q in questions]

    def write(self, questions, pictures, limit):
        self.asked += questions
        return [Said(self.texts[i % len(self.texts)], self.cut) for i in range(len(questions))]


# P(yes) of a real model


def test_p_yes_is_what_the_logits_say(vlm):
    """The model is run by hand: one picture, no padding, its last position."""
    picture, question = pictures([(40, 30)])[0], QUESTIONS["match"].format("a red circle")
    text = {
        "qwen2_5_vl": f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n"
                      "<|im_start|>assistant\n",
    }.get(vlm.name, f"<s>user: <image>{question}\nassistant: ")  # fmt: skip
    inputs = vlm.processor(text=[text], images=[[picture]], add_special_tokens=False, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        likely = vlm.model(**inputs).logits[0, -1].double().softmax(0)
    said = {word: [i for i in range(len(vlm.tokenizer)) if vlm.tokenizer.decode([i]).strip().lower() == word]
            for word in ("yes", "no")}  # fmt: skip
    assert {vlm.tokenizer.decode([i]) for i in said["yes"]} >= {"yes", " yes", "Yes", " Yes", "YES"}
    yes, no = likely[said["yes"]].sum().item(), likely[said["no"]].sum().item()
    assert vlm.agree([picture], [question]) == [pytest.approx(yes / (yes + no), abs=1e-6)]
    assert 0.01 < yes / (yes + no) < 0.99


def test_one_forward_pass_a_batch(vlm):
    passes: list[int] = []
    hook = vlm.model.register_forward_pre_hook(lambda *seen: passes.append(1))
    VLMJudge(vlm).score(IMAGES[:8], PROMPTS * 2)
    hook.remove()
    assert len(passes) == 1


def test_scores_do_not_depend_on_the_batch(vlm, monkeypatch):
    judge, prompts = VLMJudge(vlm), PROMPTS * 4
    monkeypatch.setattr(vlm, "batch_size", 16)
    together = judge.score(IMAGES, prompts)
    assert len({round(score, 4) for score in together}) > 8 and all(0 < score < 1 for score in together)
    for size in (1, 3):
        monkeypatch.setattr(vlm, "batch_size", size)
        assert judge.score(IMAGES, prompts) == pytest.approx(together, abs=1e-4), size
    assert judge.score(IMAGES[5:6], prompts[5:6]) == pytest.approx(together[5:6], abs=1e-4)


def test_mixed_sizes_do_not_depend_on_the_batch(vlm, monkeypatch):
    seen = pictures([(32, 32), (100, 40), (33, 77), (200, 32), (64, 64)])
    asked = [QUESTIONS["potential"].format(p) for p in [*PROMPTS, "the last one"]]
    monkeypatch.setattr(vlm, "batch_size", 5)
    together = vlm.agree(seen, asked)
    alone = [vlm.agree([picture], [question])[0] for picture, question in zip(seen, asked)]
    assert together == pytest.approx(alone, abs=1e-4)


def test_answers_in_words_do_not_depend_on_the_batch(vlm):
    seen = pictures([(32, 32), (100, 40)])
    both = vlm.write(PROMPTS[:2], seen, 6)
    assert both == [vlm.write([q], [p], 6)[0] for q, p in zip(PROMPTS, seen)]
    (blind,) = vlm.write(["no picture"], None, 3)
    assert isinstance(blind.text, str)


def test_a_modes_question_reaches_the_model(vlm, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(vlm, "agree", lambda pictures, questions: asked.extend(questions) or [0.5])
    for mode in ("match", "clarity", "potential"):
        VLMJudge(vlm, mode).score(IMAGES[:1], [" a {red} circle "])
        assert asked.pop() == QUESTIONS[mode].format("a {red} circle")


def test_odd_pictures(vlm):
    judge = VLMJudge(vlm)
    for shape in ((1, 1, 1, 3), (1, 1, 40, 3), (1, 3, 9, 3), (1, 9, 7, 1)):
        (score,) = judge.score(torch.rand(shape), ["a cat"])
        assert 0 < score < 1, shape
    for bad in (torch.rand(1, 8, 8, 4), torch.rand(8, 8, 3), torch.rand(1, 0, 8, 3)):
        with pytest.raises(BadInput, match=r"expected pictures \(B, H, W, 3\)"):
            judge.score(bad, ["a cat"] * len(bad))
    with pytest.raises(BadInput, match="no numbers"):
        judge.score(torch.full((1, 4, 4, 3), math.nan), ["a cat"])
    with pytest.raises(BadInput, match="a prompt is empty"):
        judge.score(IMAGES[:1], [" "])
    with pytest.raises(BadInput, match="got 1 for 2"):
        judge.score(IMAGES[:2], ["a cat"])


def test_a_prompt_with_the_models_own_marks(vlm):
    """A second place for a picture, or the end of the turn."""
    for mark in (vlm.processor.image_token, vlm.tokenizer.eos_token):
        with pytest.raises(BadInput, match="which vlm:.* takes for a mark of its own; leave it out"):
            VLMJudge(vlm).score(IMAGES[:1], [f"a {mark} cat"])


def test_the_checkpoints_own_settings_do_not_count(vlm, monkeypatch):
    picture, question = pictures([(40, 30)]), [QUESTIONS["match"].format("a cat")]
    likely, said = vlm.agree(picture, question), vlm.write(question, picture, 5)
    own = GenerationConfig(do_sample=True, temperature=9.0, top_k=3, repetition_penalty=9.0, num_beams=2,
                           eos_token_id=vlm.model.generation_config.eos_token_id)  # fmt: skip
    monkeypatch.setattr(vlm.model, "generation_config", own)
    assert vlm.agree(picture, question) == likely and vlm.write(question, picture, 5) == said
    assert vlm.model.generation_config is own


def test_precision(folders):
    full = vlm_judge(str(folders / "llava"), device="cpu")
    brain = vlm_judge(str(folders / "llava"), device="cpu", dtype="bfloat16")
    assert {p.dtype for p in brain.model.parameters()} == {torch.bfloat16}
    want = full.score(IMAGES[:2], PROMPTS[:2])
    assert brain.score(IMAGES[:2], PROMPTS[:2]) == pytest.approx(want, abs=0.1)
    full.model.half()  # as a host may leave it when it takes it off the GPU
    assert full.score(IMAGES[:2], PROMPTS[:2]) == pytest.approx(want, abs=0.02)
    assert next(full.model.parameters()).dtype == torch.float16


def test_no_answer_is_an_error(vlm, monkeypatch):
    monkeypatch.setattr(vlm_local, "LEAST", 0.999999)
    with pytest.raises(RewardFailed, match="answers neither yes nor no"):
        VLMJudge(vlm).score(IMAGES[:1], ["a cat"])


# A judge that was tuned here


def test_a_critic_says_what_is_wrong_where_something_is():
    played = Played({"a dog": 0.2}, ["  there is no dog ; it is a cat"])
    critic = VLMCritic(played, "critique")
    right, wrong = critic.criticize(IMAGES[:2], ["a cat", "a dog"])
    assert isinstance(critic, Critic) and right.satisfied and not right.critique
    assert wrong.critique == "there is no dog ; it is a cat"
    assert wrong.faults == ("there is no dog", "it is a cat")
    assert critic.score(IMAGES[:2], ["a cat", "a dog"]) == [0.9, 0.2] and len(played.texts) == 1
    with pytest.raises(RewardFailed, match="says no word about it"):
        VLMCritic(Played({"a dog": 0.2}, [" "]), "critique").criticize(IMAGES[:1], ["a dog"])


TUNED = {"questions": ["match", "clarity"], "prompts": ["ab"],
         "calibration": {"match": {"temperature": 2.0, "bias": 0.0}}}  # fmt: skip


def test_calibrations_are_of_their_questions():
    tuned = Tuned(calibrations={"match": Calibration(2.0), "clarity": Calibration(0.5)})
    judge = VLMJudge(Played(), "match", tuned)
    assert judge.score(IMAGES[:1], ["a cat"]) == [pytest.approx(0.75)]  # odds of 9, and of 3
    assert VLMJudge(Played(), "potential", tuned).score(IMAGES[:1], ["a cat"]) == [0.9]


def test_who_looks_at_previews_in_a_judges_place():
    """PARM's questions where a picture would be matched; what a model was not tuned on it is not asked."""
    for mode, made in (("match", VLMJudge), ("critique", VLMCritic)):
        judge = made(Played(), mode)
        looking = of_previews(judge)
        assert isinstance(looking, PreviewReward) and not isinstance(judge, PreviewReward)
        assert looking.vlm is judge.vlm and looking.spec.name.endswith("#potential")
        assert looking.clarity(IMAGES[:1], ["a cat"]) == [0.9] and of_previews(looking) is looking
    tuned = VLMJudge(Played(), "match", Tuned(frozenset({"match", "potential"})))
    assert of_previews(tuned).clarity(IMAGES[:1], ["a cat"]) is None
    orm = VLMJudge(Played(), "match", Tuned(frozenset({"match"})))
    assert of_previews(orm) is orm and of_previews(VLMGrade(Played(), "score")).mode == "score"


def test_what_a_folder_was_tuned_on_comes_with_it(copy, caplog):
    assert vlm_judge(str(copy), device="cpu").tuned == Tuned()
    (copy / "reprise.json").write_text(json.dumps(TUNED))
    tuned = vlm_judge(f"{copy}#clarity", device="cpu").tuned
    assert tuned == Tuned(frozenset({"match", "clarity"}), {"match": Calibration(2.0)}, frozenset({"ab"}))
    assert not caplog.records
    assert vlm_judge(f"{copy}#potential", device="cpu").clarity is not None
    assert "was not trained on 'potential'" in caplog.text
    assert type(vlm_judge(str(copy), device="cpu")) is VLMJudge
    (copy / "reprise.json").write_text(json.dumps({**TUNED, "questions": ["match", "critique"]}))
    assert isinstance(vlm_judge(str(copy), device="cpu"), VLMCritic), "it can say what is wrong"
    for text in ("{", "[]", '{"calibration": {"clarity": {"temperature": 0, "bias": 0}}}',
                 '{"calibration": {"clarity": 2}}',
                 '{"calibration": {"beauty": {"temperature": 1, "bias": 0}}}'):  # fmt: skip
        (copy / "reprise.json").write_text(text)
        with pytest.raises(CheckpointError, match="reprise.json is damaged"):
            vlm_judge(str(copy), device="cpu")


def test_a_fingerprint_follows_the_files_and_the_question(copy):
    before = fingerprint_of(str(copy))
    assert fingerprint_of(f"{copy}#match") == before != fingerprint_of(f"{copy}#clarity")
    assert vlm_judge(f"{copy}#match", device="cpu").fingerprint == fingerprint_of(f"{copy}#match")
    (copy / "reprise.json").write_text(json.dumps(TUNED))
    assert fingerprint_of(str(copy)) != before
    assert fingerprint_of("m@http://h/v1#score") == "m@http://h/v1 score"


def test_a_runs_final_is_called_as_the_run(copy, tmp_path):
    final = shutil.copytree(copy, tmp_path / "my-judge" / "final")
    assert vlm_judge(str(final), device="cpu").spec.name == "vlm:my-judge"


# Folders that are no judge


def refused(folder) -> str:
    with pytest.raises(CheckpointError) as caught:
        LocalVLM(folder, device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


@pytest.fixture
def copy(folders, tmp_path):
    return shutil.copytree(folders / "llava", tmp_path / "copy")


def test_folders_that_are_no_vlm(tmp_path, copy):
    assert "no config.json" in refused(tmp_path)
    words = tmp_path / "words"
    LlamaForCausalLM(LlamaConfig(vocab_size=9, **tiny_vlm.SIZES)).save_pretrained(words)
    assert "type 'llama'" in refused(words)
    (copy / "config.json").write_text("{")
    assert "cannot load the VLM" in refused(copy)


def test_damaged_weights(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "cannot load the VLM" in refused(copy)
    weights.rename(copy / "pytorch_model.bin")  # which would have to be unpickled
    assert "cannot load the VLM" in refused(copy)


def test_weights_that_are_not_there(copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors[next(name for name in tensors if "k_proj" in name)]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert "lacks 1 of its weights" in refused(copy)


def test_a_processor_without_pictures(copy):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (copy / name).unlink(missing_ok=True)
    assert "copy" in refused(copy)


def test_a_template_without_a_place_for_pictures(copy):
    (copy / "chat_template.jinja").write_text("{{ messages[0].content[-1].text }}")
    (copy / "chat_template.json").unlink(missing_ok=True)
    assert "no place for a picture" in refused(copy)


def test_a_template_that_breaks_and_one_that_is_missing(copy):
    (copy / "chat_template.json").unlink(missing_ok=True)
    (copy / "chat_template.jinja").write_text("{{ raise_exception('no pictures here') }}")
    assert "takes no picture with a question: no pictures here" in refused(copy)
    (copy / "chat_template.jinja").unlink()
    assert "takes no picture with a question" in refused(copy)


def test_a_tokenizer_without_the_pictures_token(copy):
    without = tiny_vlm.tokenizer(["<other>"])
    without.save_pretrained(copy)
    refused(copy)


@pytest.mark.skipif(not tiny_vlm.NO_TORCHVISION, reason="torchvision is installed, or is not needed yet")
def test_a_processor_that_wants_torchvision(tmp_path):
    tiny_vlm.qwen2_5_vl(tmp_path / "qwen")
    with pytest.raises(Unsupported, match="with torchvision, which is not installed; install it"):
        LocalVLM(tmp_path / "qwen", device="cpu")


def test_a_tokenizer_without_yes_and_no(tmp_path):
    bare = tiny_vlm.tokenizer(["<image>"], words=["a"])
    assert answer_tokens(bare, "yes") == []
    tiny_vlm.llava(tmp_path / "bare", bare)
    assert "no token for yes" in refused(tmp_path / "bare")


# Checklists and grades


def test_a_checklist_multiplies_and_says_what_is_missing():
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
def test_a_prompt_is_split_by_rule_where_the_model_writes_no_list(caplog, text, cut):
    judge = VLMChecklist(Played(texts=[text], cut=cut))
    assert judge.parts("two cats and a hat") == ("two cats", "a hat")
    assert "rules split it" in caplog.text


def test_a_checklist_of_a_real_model(vlm, monkeypatch):
    monkeypatch.setattr(vlm_module, "LIST_TOKENS", 12)
    judge = VLMChecklist(vlm)
    parts = judge.parts("a red circle and a cat")
    (score,) = judge.score(IMAGES[:1], ["a red circle and a cat"])
    one_by_one = [VLMJudge(vlm).score(IMAGES[:1], [part])[0] for part in parts]
    assert score == pytest.approx(math.prod(one_by_one), abs=1e-4)


def test_grades():
    judge = VLMGrade(Played(texts=["8", "**7.5**/10"]), "score")
    assert judge.score(IMAGES[:2], ["a cat"] * 2) == [0.8, 0.75]
    assert judge.vlm.asked == [GRADE.format("a cat")] * 2
    for text in ("", "very good", "11", "-3", "7 or 8"):
        with pytest.raises(RewardFailed, match="expected a grade from 0 to 10, it answered"):
            VLMGrade(Played(texts=[text]), "score").score(IMAGES[:1], ["a cat"])


# Behind an endpoint


def with_logprobs(text, top, *before):
    """An answer with alternatives for the token `text`; `before` it others."""
    play = answer("".join(before) + text)
    tokens = [{"token": t, "logprob": -0.1, "top_logprobs": []} for t in before]
    others = [{"token": t, "logprob": math.log(p)} for t, p in top.items()]
    tokens.append({"token": text, "logprob": -0.1, "top_logprobs": others})
    play.body["choices"][0]["logprobs"] = {"content": tokens}
    return play


def at(server, mode=""):
    return vlm_judge(f"tiny-chat@{server.url}{mode}")


def test_p_yes_from_a_servers_logprobs():
    top = {"Yes": 0.5, " yes": 0.1, "No": 0.2, "NO": 0.1, "Maybe": 0.1}
    thinking = ("<think>", " yes", "</think>", "\n", "**")
    for play in (with_logprobs("Yes", top), with_logprobs("Yes", top, *thinking)):
        with playing(play) as server:
            assert image_scores(at(server), IMAGES[:1], ["a cat"]) == [pytest.approx(6 / 9)]
            (request,) = server.requests
            assert request.body["logprobs"] is True and request.body["temperature"] == 0
            seen, words = request.body["messages"][0]["content"]
            assert words == {"type": "text", "text": QUESTIONS["match"].format("a cat")}
            head, _, data = seen["image_url"]["url"].partition(",")
            assert head == "data:image/png;base64"
            assert Image.open(io.BytesIO(base64.b64decode(data))).size == (40, 32)  # no side below 32


def test_the_word_counts_where_there_are_no_logprobs(caplog):
    with playing(answer("Yes."), answer("**No**, it is blue."), answer("<think>no</think> The answer is yes"),
                 answer(" NO\n")) as server:  # fmt: skip
        judge = at(server)
        judge.vlm.endpoint.concurrency = 1
        assert judge.score(IMAGES[:4], ["a cat"] * 4) == [1.0, 0.0, 1.0, 0.0]
        assert caplog.text.count("sends no logprobs") == 1  # said once, not for each picture


def test_a_server_that_refuses_logprobs_by_name():
    def play(body):
        if "logprobs" in body or "top_logprobs" in body:
            name = "logprobs" if "logprobs" in body else "top_logprobs"
            return Play({"error": {"message": f"{name} is not supported", "param": name}}, 400)
        return answer("No")

    with playing(play) as server:
        assert at(server).score(IMAGES[:1], ["a cat"]) == [0.0] and len(server.requests) == 3


@pytest.mark.parametrize("text", ["I see a cat", "maybe", "yesterday", "noise"])
def test_a_servers_rubbish_is_an_error(text):
    with playing(answer(text)) as server, pytest.raises(EndpointError, match="expected yes or no from 'tiny"):
        at(server).score(IMAGES[:1], ["a cat"])


def test_an_answer_that_is_only_thinking():
    with playing(answer("", finish="length")) as server, pytest.raises(EndpointError, match="off after 512"):
        at(server).score(IMAGES[:1], ["a cat"])


@pytest.mark.parametrize("logprobs", [
    {"content": [{"token": "Yes", "top_logprobs": [{"token": "Yes", "logprob": "high"}]}]},
    {"content": [{"token": "Yes", "top_logprobs": [{"token": "Yes", "logprob": 3.0}]}]},
    {"content": [{"token": "Yes", "top_logprobs": [{"token": "Yes", "logprob": math.nan}]}]},
    {"content": [{"token": "Yes", "top_logprobs": [{"token": "Ja", "logprob": -1.0}]}]},
    {"content": [{"word": "Yes"}]}, {"content": ["Yes"]}, {"content": {"Yes": 1}}, ["Yes"],
])  # fmt: skip
def test_broken_logprobs_are_an_error(logprobs):
    play = answer("Yes")
    play.body["choices"][0]["logprobs"] = logprobs
    with playing(Play(json.dumps(play.body).encode())) as server:
        with pytest.raises(EndpointError, match="logprobs that cannot be read") as caught:
            at(server).score(IMAGES[:1], ["a cat"])
        assert "\n" not in str(caught.value)


def test_grades_and_checklists_of_a_server():
    with playing(answer("9/10")) as server:
        assert at(server, "#score").score(IMAGES[:1], ["a cat"]) == [0.9]
    with playing(answer("1. a cat\n2. a hat"), answer("Yes"), answer("No")) as server:
        judge = at(server, "#checklist")
        judge.vlm.endpoint.concurrency = 1
        assert judge.criticize(IMAGES[:1], ["a cat, a hat"])[0].faults == ("it does not show a hat",)
        assert len(server.requests[0].body["messages"][0]["content"]) == 1  # no picture for the list


def test_nobody_answers():
    with pytest.raises(EndpointError, match="cannot reach"):
        vlm_judge(f"m@{closed_url()}").score(IMAGES[:1], ["a cat"])


# Names


def test_names_on_the_command_line(folders, monkeypatch):
    judge = make_reward(f"vlm:{folders / 'llava'}#checklist")
    assert judge.spec.name == "vlm:llava#checklist" and isinstance(judge, Critic)
    far = make_reward("vlm:qwen2.5vl:7b@http://127.0.0.1:1/v1#potential")
    assert far.spec.name == "vlm:qwen2.5vl:7b#potential" and (far.spec.low, far.spec.high) == (0, 1)
    assert set(MODES) == {"match", "clarity", "potential", "critique", "checklist", "score"}
    monkeypatch.setenv("REPRISE_MODELS", str(folders.parent))
    (folders.parent / "judges").symlink_to(folders)
    assert make_reward("vlm:llava").spec.name == "vlm:llava"
    snapshot = folders.parent / "hub" / "models--tiny--chat" / "snapshots" / "0123"
    shutil.copytree(folders / "llava", snapshot)
    (refs := snapshot.parents[1] / "refs").mkdir()
    (refs / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folders.parent / "hub"))
    assert make_reward("vlm:tiny/chat#score").spec.name == "vlm:chat#score"
    weights = parse_weights([f"vlm:{folders / 'llava'}=2", "shapeworld"])
    assert make_judge(None, weights).spec.name == "mix"


@pytest.mark.parametrize(("name", "error", "says"), [
    ("vlm", BadInput, "names no model; give vlm:FOLDER or vlm:MODEL@URL"),
    ("vlm:", BadInput, "names no model"),
    ("vlm:@http://127.0.0.1/v1", BadInput, "no model before its address"),
    ("vlm:nowhere", CheckpointError, "there is no folder nowhere, and no model .* give vlm:FOLDER or"),
    ("vlm:nobody/nowhere", CheckpointError, "Hugging Face's cache; run `hf download nobody/nowhere`"),
    ("vlm:no/such/folder", CheckpointError, "there is no folder no/such/folder"),
    ("vlm:nowhere#chekclist", UnknownName, "did you mean 'checklist'"),
    ("vlm:m@http://u:p@h/v1", BadInput, "expected an address"),
])  # fmt: skip
def test_names_that_are_none(name, error, says):
    with pytest.raises(error, match=says) as caught:
        make_reward(name)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
