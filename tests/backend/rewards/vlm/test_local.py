"""The model behind a local VLM judge, on tiny real ones of several architectures."""

import math

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from reprise.backend.core.errors import BadInput, CheckpointError, RewardFailed, Unsupported
from reprise.backend.rewards.vlm import local as vlm_local
from reprise.backend.rewards.vlm.judge import VLMJudge, vlm_judge
from reprise.backend.rewards.vlm.local import LocalVLM, answer_tokens
from reprise.backend.rewards.vlm.questions import QUESTIONS

from . import tiny_vlm
from .played_vlm import IMAGES, PROMPTS, noise

# P(yes) of a real model


def test_p_yes_equals_the_logits(vlm):
    """The model is run by hand: one picture, no padding, its last position."""
    picture, question = noise([(40, 30)])[0], QUESTIONS["match"].format("a red circle")
    text = {
        "qwen2_5_vl": f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n"
        "<|im_start|>assistant\n",
    }.get(vlm.name, f"<s>user: <image>{question}\nassistant: ")
    inputs = vlm.processor(text=[text], images=[[picture]], add_special_tokens=False, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        likely = vlm.model(**inputs).logits[0, -1].double().softmax(0)
    said = {
        word: [i for i in range(len(vlm.tokenizer)) if vlm.tokenizer.decode([i]).strip().lower() == word]
        for word in ("yes", "no")
    }
    assert {vlm.tokenizer.decode([i]) for i in said["yes"]} >= {"yes", " yes", "Yes", " Yes", "YES"}
    yes, no = likely[said["yes"]].sum().item(), likely[said["no"]].sum().item()
    assert vlm.yes_probabilities([picture], [question]) == [pytest.approx(yes / (yes + no), abs=1e-6)]
    assert 0.01 < yes / (yes + no) < 0.99


def test_each_batch_takes_one_forward_pass(vlm):
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
    seen = noise([(32, 32), (100, 40), (33, 77), (200, 32), (64, 64)])
    asked = [QUESTIONS["potential"].format(p) for p in [*PROMPTS, "the last one"]]
    monkeypatch.setattr(vlm, "batch_size", 5)
    together = vlm.yes_probabilities(seen, asked)
    alone = [vlm.yes_probabilities([picture], [question])[0] for picture, question in zip(seen, asked)]
    assert together == pytest.approx(alone, abs=1e-4)


def test_answers_in_words_do_not_depend_on_the_batch(vlm):
    seen = noise([(32, 32), (100, 40)])
    both = vlm.generate(PROMPTS[:2], seen, 6)
    assert both == [vlm.generate([q], [p], 6)[0] for q, p in zip(PROMPTS, seen)]
    (blind,) = vlm.generate(["no picture"], None, 3)
    assert isinstance(blind.text, str)


def test_a_modes_question_reaches_the_model(vlm, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(
        vlm, "yes_probabilities", lambda pictures, questions: asked.extend(questions) or [0.5]
    )
    for mode in ("match", "clarity", "potential"):
        VLMJudge(vlm, mode).score(IMAGES[:1], [" a {red} circle "])
        assert asked.pop() == QUESTIONS[mode].format("a {red} circle")


def test_unusual_pictures_are_scored(vlm):
    judge = VLMJudge(vlm)
    for shape in ((1, 1, 1, 3), (1, 1, 40, 3), (1, 3, 9, 3), (1, 9, 7, 1)):
        (score,) = judge.score(torch.rand(shape), ["a cat"])
        assert 0 < score < 1, shape
    for bad in (torch.rand(1, 8, 8, 4), torch.rand(8, 8, 3), torch.rand(1, 0, 8, 3)):
        with pytest.raises(BadInput, match=r"expected pictures \(B, H, W, 3\)"):
            judge.score(bad, ["a cat"] * len(bad))
    with pytest.raises(BadInput, match="NaN or infinite"):
        judge.score(torch.full((1, 4, 4, 3), math.nan), ["a cat"])
    with pytest.raises(BadInput, match="a prompt is empty"):
        judge.score(IMAGES[:1], [" "])
    with pytest.raises(BadInput, match="got 1 for 2"):
        judge.score(IMAGES[:2], ["a cat"])


def test_a_prompt_with_control_tokens_is_refused(vlm):
    """A second place for a picture, or the end of the turn."""
    for mark in (vlm.processor.image_token, vlm.tokenizer.eos_token):
        with pytest.raises(BadInput, match="a control token of vlm:.*; leave it out"):
            VLMJudge(vlm).score(IMAGES[:1], [f"a {mark} cat"])


def test_the_checkpoints_generation_settings_are_ignored(vlm, monkeypatch):
    picture, question = noise([(40, 30)]), [QUESTIONS["match"].format("a cat")]
    likely, said = vlm.yes_probabilities(picture, question), vlm.generate(question, picture, 5)
    own = GenerationConfig(
        do_sample=True,
        temperature=9.0,
        top_k=3,
        repetition_penalty=9.0,
        num_beams=2,
        eos_token_id=vlm.model.generation_config.eos_token_id,
    )
    monkeypatch.setattr(vlm.model, "generation_config", own)
    assert vlm.yes_probabilities(picture, question) == likely and vlm.generate(question, picture, 5) == said
    assert vlm.model.generation_config is own


def test_precision_follows_device_and_dtype(vlm_folders):
    full = vlm_judge(str(vlm_folders / "llava"), device="cpu")
    brain = vlm_judge(str(vlm_folders / "llava"), device="cpu", dtype="bfloat16")
    assert {p.dtype for p in brain.model.parameters()} == {torch.bfloat16}
    want = full.score(IMAGES[:2], PROMPTS[:2])
    assert brain.score(IMAGES[:2], PROMPTS[:2]) == pytest.approx(want, abs=0.1)
    full.model.half()  # as a host may leave it when it takes it off the GPU
    assert full.score(IMAGES[:2], PROMPTS[:2]) == pytest.approx(want, abs=0.02)
    assert next(full.model.parameters()).dtype == torch.float16


def test_no_answer_is_an_error(vlm, monkeypatch):
    monkeypatch.setattr(vlm_local, "MIN_ANSWER_MASS", 0.999999)
    with pytest.raises(RewardFailed, match="answers neither yes nor no"):
        VLMJudge(vlm).score(IMAGES[:1], ["a cat"])


# Folders that are no judge


def refused(folder) -> str:
    with pytest.raises(CheckpointError) as caught:
        LocalVLM(folder, device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def test_folders_that_are_no_vlm_are_refused(tmp_path, llava):
    assert "no config.json" in refused(tmp_path)
    words = tmp_path / "words"
    LlamaForCausalLM(LlamaConfig(vocab_size=9, **tiny_vlm.SIZES)).save_pretrained(words)
    assert "type 'llama'" in refused(words)
    (llava / "config.json").write_text("{")
    assert "cannot load the VLM" in refused(llava)


def test_damaged_weights_are_refused(llava):
    weights = llava / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "cannot load the VLM" in refused(llava)
    weights.rename(llava / "pytorch_model.bin")  # which would have to be unpickled
    assert "cannot load the VLM" in refused(llava)


def test_missing_weights_are_refused(llava):
    from safetensors.torch import load_file, save_file

    tensors = load_file(llava / "model.safetensors")
    del tensors[next(name for name in tensors if "k_proj" in name)]
    save_file(tensors, llava / "model.safetensors", {"format": "pt"})
    assert "lacks 1 of its weights" in refused(llava)


def test_a_missing_image_processor_is_refused(llava):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (llava / name).unlink(missing_ok=True)
    assert "copy" in refused(llava)


def test_a_chat_template_without_pictures_is_refused(llava):
    (llava / "chat_template.jinja").write_text("{{ messages[0].content[-1].text }}")
    (llava / "chat_template.json").unlink(missing_ok=True)
    assert "no place for a picture" in refused(llava)


def test_broken_and_missing_chat_templates_are_refused(llava):
    (llava / "chat_template.json").unlink(missing_ok=True)
    (llava / "chat_template.jinja").write_text("{{ raise_exception('no pictures here') }}")
    assert "takes no picture with a question: no pictures here" in refused(llava)
    (llava / "chat_template.jinja").unlink()
    assert "takes no picture with a question" in refused(llava)


def test_a_tokenizer_without_the_image_token_is_refused(llava):
    without = tiny_vlm.tokenizer(["<other>"])
    without.save_pretrained(llava)
    refused(llava)


@pytest.mark.skipif(not tiny_vlm.NO_TORCHVISION, reason="torchvision is installed, or is not needed yet")
def test_a_processor_that_needs_torchvision_says_so(tmp_path):
    tiny_vlm.qwen2_5_vl(tmp_path / "qwen")
    with pytest.raises(Unsupported, match="with torchvision, which is not installed; install it"):
        LocalVLM(tmp_path / "qwen", device="cpu")


def test_a_tokenizer_without_yes_and_no_is_refused(tmp_path):
    bare = tiny_vlm.tokenizer(["<image>"], words=["a"])
    assert answer_tokens(bare, "yes") == []
    tiny_vlm.llava(tmp_path / "bare", bare)
    assert "no token for yes" in refused(tmp_path / "bare")
