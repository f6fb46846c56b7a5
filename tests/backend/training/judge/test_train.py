"""`train judge` on tiny real VLMs, and pictures that are red or blue."""

import json
import math
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from reprise.backend.core.config import load_config
from reprise.backend.core.errors import BadInput, CheckpointError, RewardFailed, TrainingFailed
from reprise.backend.core.registry import TRAINERS, resolve
from reprise.backend.rewards.vlm.judge import VLMCritic, vlm_judge, vlm_pictures
from reprise.backend.rewards.vlm.local import LocalVLM
from reprise.backend.training.common import step_loop
from reprise.backend.training.common.losses import answer_loss
from reprise.backend.training.judge import loop as judge_loop
from reprise.backend.training.judge import train as judge_module
from reprise.backend.training.judge.batch import JudgeQuestion, encode, losses
from reprise.backend.training.judge.config import JudgeConfig
from reprise.backend.training.judge.data import prompt_mark, split_of
from reprise.backend.training.judge.train import train

from ...rewards.vlm import tiny_vlm
from ..conftest import half_write

COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vlms")
    tiny_vlm.llava(root / "llava")
    tiny_vlm.idefics3(root / "idefics3")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Is it a red circle? Of twenty circles; a preview is as its picture, and what is wrong is blue."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for n in range(40):
        color = tuple(COLORS)[n % 2]
        shade = tuple(max(0, value - n % 5 * 4) for value in COLORS[color])
        Image.new("RGB", (32, 32), shade).save(folder / f"{n}.png")
        prompt = f"a red circle {n // 2}"
        row = {"prompt": prompt, "image": f"{n}.png", "split": split_of(prompt, 0.3, 0.3)}
        lines += [
            {**row, "question": "match", "label": color == "red"},
            {**row, "question": "potential", "label": color == "red", "step": 1 + n % 3},
        ]
        if color == "blue":
            lines.append({**row, "question": "critique", "text": "it is blue"})
    path = folder / "judge.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(folders, data, **more):
    return JudgeConfig(
        **{
            "model": str(folders / "idefics3"),
            "data": data,
            "vision": "train",
            "max_steps": 6,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "device": "cpu",
            "save_every": 2,
            "eval_every": 3,
            "gradient_checkpointing": False,
            **more,
        }
    )


def run_of(config, run, **more):
    return train(config, run, log=lambda line: None, **more)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights_of(folder):
    return load_file(folder / "model.safetensors")


# What is learned is what is read


@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_the_loss_uses_the_judges_p_yes(folders, name):
    """With rows of unlike length and a sentence among them, whose padding changes nothing."""
    vlm = LocalVLM(folders / name, device="cpu")
    draw = torch.Generator().manual_seed(0)
    pictures = vlm_pictures(torch.rand(3, 40, 40, 3, generator=draw))
    questions = ["Does this figure show a cat?", "Yes?", "What is wrong with this one?"]
    likely = vlm.yes_probabilities(pictures, questions)
    with torch.no_grad():
        yes = losses(vlm, encode(vlm, [JudgeQuestion(q, p, True) for q, p in zip(questions, pictures)]))
        no = losses(vlm, encode(vlm, [JudgeQuestion(q, p, False) for q, p in zip(questions, pictures)]))
        mixed = losses(
            vlm,
            encode(
                vlm,
                [
                    JudgeQuestion(questions[0], pictures[0], True),
                    JudgeQuestion(questions[1], pictures[1], "it is not a cat, but a dog"),
                ],
            ),
        )
        alone = losses(
            vlm, encode(vlm, [JudgeQuestion(questions[1], pictures[1], "it is not a cat, but a dog")])
        )
    assert torch.sigmoid(no - yes).tolist() == pytest.approx(likely, abs=1e-5)
    assert mixed[0].item() == pytest.approx(yes[0].item(), abs=1e-4)
    assert mixed[1].item() == pytest.approx(alone[0].item(), abs=1e-4)


def test_a_sentence_is_learned_token_by_token_with_its_end(folders):
    vlm = LocalVLM(folders / "llava", device="cpu")
    batch = encode(vlm, [JudgeQuestion("What?", Image.new("RGB", (32, 32)), "no dog")])
    (words,), (start,) = batch.sentences, batch.starts
    assert vlm.tokenizer.decode(words[:-1]) == "no dog" and words[-1] == vlm.tokenizer.eos_token_id
    ids = batch.inputs["input_ids"][0].tolist()
    assert ids[start + 1 :] == words and batch.inputs["attention_mask"].all()
    with torch.no_grad():
        likely = vlm.model(**batch.inputs).logits[0].log_softmax(-1)
        by_hand = -sum(likely[start + i, word].item() for i, word in enumerate(words)) / len(words)
        assert losses(vlm, batch).item() == pytest.approx(by_hand, abs=1e-4)


def test_the_loss_by_hand():
    said = torch.tensor([[0.6, 0.2], [0.1, 0.3]]).log()
    assert answer_loss(said, torch.tensor([True, False])).tolist() == pytest.approx(
        [-math.log(0.6), -math.log(0.3)]
    )


# A run


@pytest.fixture(scope="module")
def finished(folders, data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    config = settings(folders, data, max_steps=30, eval_every=15, save_every=30, batch_size=8)
    return run_of(config, run).parent


def test_it_learns_and_logs_it(finished):
    first, *_, last = lines_of(finished / "evaluations.jsonl")
    assert first["step"] == 0 and last["step"] == 30
    assert last["match/accuracy"] == last["potential/accuracy"] == 1.0
    assert set(last["by_step"]["potential"]) <= {"1", "2", "3"} and set(last["by_step"]["match"]) == {"0"}
    assert last["critique/loss"] < first["critique/loss"] and last["samples"][0]["reason"] == "it is blue"
    assert last["match/calibration error"] < first["match/calibration error"]
    rows = lines_of(finished / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] / 4 and {"loss/match", "loss/critique"} <= rows[0].keys()
    page = (finished / "report.html").read_text()
    for title in ("Reliability", "Right answers by denoising step", "calibration error"):
        assert title in page
    assert any((finished / "tensorboard").iterdir())


def test_the_judge_loads_by_its_folder(finished):
    kept = json.loads((finished / "final" / "reprise.json").read_text())
    assert set(kept["calibration"]) == {"match", "potential"} and kept["role"] == "judge"
    assert kept["questions"] == ["match", "potential", "critique"], "there was nothing about clarity"
    seen = {f"a red circle {n}" for n in range(20) if prompt_mark(f"a red circle {n}") in kept["prompts"]}
    assert {split_of(prompt, 0.3, 0.3) for prompt in seen} == {"train", "calibration"}
    assert len(seen) == len(kept["prompts"])
    images = torch.stack([torch.tensor(color) / 255 for color in COLORS.values()])[:, None, None]
    images = images.expand(2, 32, 32, 3)
    red, blue = vlm_judge(f"{finished / 'final'}", device="cpu").score(images, ["a red circle 7"] * 2)
    assert red > 0.5 > blue
    critic = vlm_judge(str(finished / "final"), device="cpu")
    assert isinstance(critic, VLMCritic) and critic.spec.name == "vlm:run"
    right, wrong = critic.criticize(images, ["a red circle 7"] * 2)
    assert right.satisfied and not wrong.satisfied and wrong.critique
    fitted = {question: one._asdict() for question, one in critic.tuned.calibrations.items()}
    assert fitted == kept["calibration"]
    written = (finished / "final" / "reprise.json").read_bytes()
    (finished / "final" / "reprise.json").write_text('{"calibration": {"match": -1}}')
    with pytest.raises(CheckpointError, match="is damaged"):
        vlm_judge(f"{finished / 'final'}", device="cpu")
    (finished / "final" / "reprise.json").write_bytes(written)


@pytest.mark.parametrize("lora", [None, {"r": 2, "alpha": 4, "dropout": 0.1}])
def test_killed_and_resumed_equals_never_killed(folders, data, tmp_path, monkeypatch, lora):
    config = settings(folders, data, lora=lora)
    whole = run_of(config, tmp_path / "whole")
    take = judge_loop.JudgeLoop.learn

    def killed(self, step):
        if step == 6:
            raise KeyboardInterrupt
        return take(self, step)

    monkeypatch.setattr(judge_loop.JudgeLoop, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        run_of(config, tmp_path / "cut")
    monkeypatch.undo()
    half_write(tmp_path / "cut", "weights.safetensors")
    resumed = run_of(config, tmp_path / "cut", resume=True)
    expected, found = weights_of(whole), weights_of(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        once, again = (
            [{**row, "seconds": 0} for row in lines_of(tmp_path / which / name)] for which in ("whole", "cut")
        )
        assert once == again, name
    assert run_of(config, tmp_path / "cut", resume=True) == resumed


def test_changed_pictures_stop_a_resumed_run(folders, data, tmp_path):
    own = shutil.copytree(data.parent, tmp_path / "data")
    config = settings(folders, own / data.name, max_steps=2, save_every=1)

    def stop(line):
        if line.startswith("step 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", log=stop)
    before = (own / "0.png").read_bytes()
    (own / "0.png").write_bytes((own / "1.png").read_bytes())
    with pytest.raises(BadInput, match="judge.jsonl, or what it names, changed since .*; bring it back"):
        run_of(config, tmp_path / "run", resume=True)
    (own / "0.png").write_bytes(before)
    run_of(config, tmp_path / "run", resume=True)


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name].to(before[name].dtype))}


def test_a_frozen_tower_does_not_change(folders, data, tmp_path):
    before = weights_of(folders / "llava")
    for name, lora in (("full", None), ("lora", {"r": 2, "alpha": 4})):
        where = str(folders / "llava")
        config = settings(folders, data, model=where, vision="frozen", lora=lora, max_steps=2)
        made = run_of(config, tmp_path / name)
        moved = changed(before, weights_of(made))
        assert moved and not any("vision" in key for key in moved), name
        assert any("language_model" in key for key in moved)


def test_only_an_adapter_is_trained_and_stored(folders, data, tmp_path):
    run_of(settings(folders, data, lora={"r": 2, "alpha": 4}, max_steps=2), tmp_path / "run")
    kept = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-2" / "weights.safetensors")
    assert kept and all("lora_" in name for name in kept)
    LocalVLM(tmp_path / "run" / "final", device="cpu")


def test_a_batch_of_eight_equals_two_of_four(folders, data, tmp_path):
    losses_ = []
    for each, more in ((8, 1), (4, 2)):
        run = tmp_path / str(each)
        run_of(settings(folders, data, batch_size=each, accumulation=more, max_steps=3), run)
        losses_.append([row["loss"] for row in lines_of(run / "metrics.jsonl")])
    assert losses_[0] == pytest.approx(losses_[1], rel=1e-3)


def test_epochs(folders, data, tmp_path):
    run_of(settings(folders, data, max_steps=None, epochs=0.2, batch_size=8), tmp_path / "run")
    first, *_ = lines_of(tmp_path / "run" / "metrics.jsonl")
    training = sum(json.loads(line).get("split") == "train" for line in data.read_text().splitlines())
    assert first["of"] == math.ceil(0.2 * training / 8)


# What cannot be


def refused(config, run, kind=BadInput):
    with pytest.raises(kind) as caught:
        run_of(config, run)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_data_that_teaches_nothing(folders, data, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert "holds no examples" in refused(settings(folders, empty), tmp_path / "run")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        row["image"] = str(data.parent / row["image"])
    alike = tmp_path / "alike.jsonl"
    alike.write_text("".join(json.dumps(row) + "\n" for row in rows if row.get("label")))
    assert "have the answer yes" in refused(settings(folders, alike), tmp_path / "run")
    gone = tmp_path / "gone.jsonl"
    gone.write_text(data.read_text())
    assert "are gone; bring them back" in refused(settings(folders, gone), tmp_path / "run")
    assert "no example" in refused(settings(folders, data, questions=["clarity"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_picture(folders, data, tmp_path):
    folder = shutil.copytree(data.parent, tmp_path / "data")
    for path in folder.glob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    said = refused(settings(folders, folder / "judge.jsonl"), tmp_path / "run")
    assert ".png is damaged" in said or "is not a readable picture" in said


def test_a_model_without_tokens_for_yes_and_no(folders, data, tmp_path):
    bare = tiny_vlm.tokenizer(["<image>"], words=["a red circle"] * 9)
    tiny_vlm.llava(tmp_path / "bare", bare)
    said = refused(settings(folders, data, model=str(tmp_path / "bare")), tmp_path / "run", CheckpointError)
    assert "no token for yes or none for no" in said and not (tmp_path / "run").exists()


def test_a_loss_of_nan(folders, data, tmp_path, monkeypatch):
    take = judge_loop.losses
    monkeypatch.setattr(judge_loop, "losses", lambda vlm, batch: take(vlm, batch) * math.nan)
    config = settings(folders, data, eval_most=1, questions=["match"])
    said = refused(config, tmp_path / "run", TrainingFailed)
    assert "the loss of step 1 is nan; lower learning_rate" in said


def test_a_full_disk(folders, data, tmp_path, monkeypatch):
    save = step_loop.save_checkpoint

    def full(*given, **options):
        import safetensors.torch

        with pytest.MonkeyPatch.context() as patch:

            def no_room(*rest):
                raise OSError(28, "No space left on device")

            patch.setattr(safetensors.torch, "save_file", no_room)
            save(*given, **options)

    monkeypatch.setattr(step_loop, "save_checkpoint", full)
    said = refused(settings(folders, data), tmp_path / "run", TrainingFailed)
    assert "no space left to write" in said and "checkpoint-2: " in said and "make room, and --resume" in said
    monkeypatch.undo()
    run_of(settings(folders, data), tmp_path / "run", resume=True)


def test_changed_data_stops_a_resumed_run(folders, data, tmp_path):
    folder = shutil.copytree(data.parent, tmp_path / "data")
    config = settings(folders, folder / "judge.jsonl")
    run = run_of(config, tmp_path / "run").parent
    shutil.rmtree(run / "final")
    (folder / "judge.jsonl").write_text((folder / "judge.jsonl").read_text().replace("it is blue", "blue!"))
    with pytest.raises(BadInput, match="changed since"):
        run_of(config, run, resume=True)


def test_changed_test_examples_stop_a_resumed_run(folders, data, tmp_path):
    """Calibration and figures would be of other answers, too."""
    folder = shutil.copytree(data.parent, tmp_path / "data")
    config = settings(folders, folder / "judge.jsonl")
    run = run_of(config, tmp_path / "run").parent
    shutil.rmtree(run / "final")
    rows = lines_of(folder / "judge.jsonl")
    aside = next(row for row in rows if row["split"] == "calibration" and row["question"] == "match")
    aside["label"] = not aside["label"]
    (folder / "judge.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match="changed since"):
        run_of(config, run, resume=True)


def test_a_model_that_does_not_answer_with_yes_or_no_yet(folders, data, tmp_path, monkeypatch):
    """It is what is to be tuned; judging with it is refused."""
    plain = LocalVLM.answer_logprobs
    monkeypatch.setattr(LocalVLM, "answer_logprobs", lambda self, logits: plain(self, logits) - 20)
    vlm = LocalVLM(folders / "idefics3", device="cpu")
    with pytest.raises(RewardFailed, match="neither yes nor no"):
        vlm.yes_probabilities([Image.new("RGB", (32, 32))], ["Yes?"])
    run_of(settings(folders, data, max_steps=1), tmp_path / "run")
    first, *_ = lines_of(tmp_path / "run" / "evaluations.jsonl")
    assert 0 <= first["match/accuracy"] <= 1


def test_impossible_settings(folders, data):
    for more, said in (
        ({"epochs": 1.0}, "give one of epochs and max_steps"),
        ({"max_steps": None}, "give one of"),
        ({"questions": ["match", "match"]}, "names one twice"),
        ({"scheduler": "constant"}, "has no warm-up"),
        ({"dtype": "bfloat16"}, "loses small updates"),
    ):
        with pytest.raises(ValueError, match=said):
            settings(folders, data, **more)


def test_the_shipped_configs():
    assert resolve("trainer", TRAINERS, "judge") is train and judge_module.CONFIG is JudgeConfig
    folder = judge_module.Path(judge_module.__file__).parent / "configs"
    found = {path.stem: load_config(JudgeConfig, path) for path in folder.glob("*.yaml")}
    assert set(found) == {"shapeworld", "llava-onevision-7b", "qwen2.5-vl-3b"}
    paper = found["llava-onevision-7b"]
    assert (paper.lora, paper.epochs, paper.learning_rate, paper.batch_size) == (None, 1.0, 1e-5, 8)
