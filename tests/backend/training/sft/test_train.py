import json
import shutil

import pytest
import torch

from reprise.backend.core.config import load_config, parse_config, save_config
from reprise.backend.core.errors import BadInput, CheckpointError, TrainingFailed, UnknownName
from reprise.backend.rewriters.prompting import PLAIN_SYSTEM, SYSTEM, prompt_ids
from reprise.backend.rewriters.reprompt import RePromptRewriter, load_checkpoint
from reprise.backend.storage.checksums import CHECKSUMS
from reprise.backend.storage.outputs import MARK
from reprise.backend.training.common.checkpoints import newest_checkpoint
from reprise.backend.training.common.start import system_text
from reprise.backend.training.sft.config import SftConfig
from reprise.backend.training.sft.data import RewriteExample, encode, read_examples
from reprise.backend.training.sft.loop import LengthGroupedSampler
from reprise.backend.training.sft.train import train

from ..conftest import half_write

ROWS = [
    {"prompt": f"a photo of {n} stars", "reason": f"There are {n}.", "rewrite": f"{n} large stars"}
    for n in ("two", "three", "four")
] * 8


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights: two layers, 16 wide, the embedded rewriter's tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from reprise.backend.lab.weights.rewriter import tokenizer

    where = tmp_path_factory.mktemp("sft") / "model"
    made = tokenizer()
    torch.manual_seed(0)
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(made),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=made.eos_token_id,
            pad_token_id=made.pad_token_id,
        )
    ).save_pretrained(where)
    made.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sft.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n", encoding="utf-8")
    return path


def config(model, data, **changes):
    return SftConfig(
        **{
            "model": str(model),
            "data": data,
            "system": "Rewrite.",
            "max_steps": 6,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "max_length": 96,
            "max_new_tokens": 32,
            "device": "cpu",
            "save_every": 2,
            "log_every": 1,
            "gradient_checkpointing": False,
            **changes,
        }
    )


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def finished(model, data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train(config(model, data), run, log=lambda line: None) == run / "final"
    return run


def test_the_run_folder(finished, model):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert load_config(SftConfig, finished / "config.yaml").max_steps == 6
    assert not same(weights(finished / "final"), weights(model))


def test_the_rewriter_loads_the_trained_weights(finished):
    rewriter = RePromptRewriter(finished / "final", device="cpu")
    assert (rewriter.system, rewriter.max_new_tokens, rewriter.temperature) == ("Rewrite.", 32, 0.9)
    [[rewrite]] = rewriter.rewrite(["three stars"])
    assert rewrite.rewriter == "reprompt"


class Killed(Exception):
    pass


def test_killed_and_resumed_equals_never_killed_in_a_later_epoch(model, data, tmp_path):
    """Six steps of eight are two epochs; adapter dropout draws from torch's generator."""
    for grouped in (True, False):
        settings = config(model, data, batch_size=8, group_by_length=grouped, lora={"r": 2, "dropout": 0.5})
        whole, killed = tmp_path / f"whole-{grouped}", tmp_path / f"killed-{grouped}"
        train(settings, whole, log=lambda line: None)
        stop_at(5, settings, killed)
        train(settings, killed, resume=True, log=lambda line: None)
        assert same(weights(whole / "final"), weights(killed / "final"))


def test_similar_lengths_share_a_batch():
    lengths = [index * 7 % 40 for index in range(203)]
    sampler = LengthGroupedSampler(lengths, batch_size=10, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(203))
    assert list(sampler) == first
    batches = [[lengths[i] for i in first[start : start + 10]] for start in range(0, 200, 10)]
    assert max(max(batch) - min(batch) for batch in batches) <= 4
    sampler.set_epoch(1)
    assert list(sampler) != first


def stop_at(step, settings, run):
    def log(line):
        if line.startswith(f"step {step}/"):
            raise Killed

    with pytest.raises(Killed):
        train(settings, run, log=log)


@pytest.mark.parametrize("at", [1, 3, 5])
def test_killed_and_resumed_equals_never_killed(at, finished, model, data, tmp_path):
    settings = config(model, data)

    stop_at(at, settings, tmp_path)
    assert not (tmp_path / "final").exists()
    half_write(tmp_path, "model.safetensors")
    said = []
    train(settings, tmp_path, resume=True, log=said.append)
    begun = at // 2 * 2
    assert ("from the start" if at == 1 else f"going on from checkpoint-{min(begun, 4)}") in " ".join(said)
    assert same(weights(tmp_path / "final"), weights(finished / "final"))

    def losses(run):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return [(row["step"], row["loss"]) for row in map(json.loads, lines)]

    assert losses(tmp_path) == losses(finished)


def test_every_file_of_a_checkpoint_is_compared(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    newest = newest_checkpoint(run / "checkpoints")
    names = {path.name for path in newest.iterdir()}
    assert names >= {
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    }
    for path in sorted(newest.iterdir()):
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = bytes(one ^ 0xFF for one in whole[middle : middle + 64])
        path.write_bytes(whole[:middle] + flipped + whole[middle + 64 :])
        with pytest.raises(CheckpointError, match=f"{newest.name}.*; delete the folder .*{newest.name}"):
            newest_checkpoint(run / "checkpoints")
        path.unlink()
        if path.name != CHECKSUMS:
            with pytest.raises(CheckpointError, match=f"{path.name} is missing; delete the folder"):
                newest_checkpoint(run / "checkpoints")
        path.write_bytes(whole)
    assert newest_checkpoint(run / "checkpoints") == newest


def test_a_full_disk_leaves_the_last_checkpoint_and_copies_of_the_user(finished, model, data, tmp_path):
    """torch says "enforce fail" of a disk without room. transformers would delete the user's copy."""
    from transformers import Trainer

    settings, run, save = config(model, data), tmp_path / "run", Trainer._save_optimizer_and_scheduler

    def no_room(self, folder):
        if self.state.global_step == 4:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598")
        save(self, folder)

    def log(line):
        if line.startswith("step 3/"):
            shutil.copytree(run / "checkpoints" / "checkpoint-2", run / "checkpoints" / "checkpoint-2-good")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", no_room)
        with pytest.raises(TrainingFailed) as caught:
            train(settings, run, log=log)
    said = str(caught.value)
    assert said.startswith(f"no space left to write {run / 'checkpoints' / 'checkpoint-4'}: ")
    assert said.endswith(f"make room, and --resume {run} goes on from step 2") and "enforce" not in said
    left = {"checkpoint-2", "checkpoint-2-good"}
    assert {path.name for path in (run / "checkpoints").glob("checkpoint-*")} == left
    train(settings, run, resume=True, log=lambda line: None)
    assert same(weights(run / "final"), weights(finished / "final"))
    kept = {path.name for path in (run / "checkpoints").glob("checkpoint-*")}
    assert kept == {"checkpoint-2-good", "checkpoint-4", "checkpoint-6"}


def test_a_damaged_model_is_refused_before_it_is_trained_or_used(finished, data, tmp_path):
    final = shutil.copytree(finished / "final", tmp_path / "final")
    path = final / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 1
    path.write_bytes(whole)
    for load in (RePromptRewriter, lambda folder: train(config(folder, data), tmp_path / "run")):
        with pytest.raises(CheckpointError, match="model.safetensors is damaged .*; copy, download or train"):
            load(final)
    assert not (tmp_path / "run").exists()
    (final / CHECKSUMS).unlink()
    RePromptRewriter(final, device="cpu")


def test_resume_with_changed_settings_goes_on_or_changes_nothing(finished, model, data, tmp_path):
    """What is refused leaves the run as it was; of another save_every the weights are the same."""
    from reprise.backend.cli.main import run as command

    run = tmp_path / "run"
    stop_at(3, config(model, data), run)

    def content():
        """Of all files but who holds the folder."""
        files = [path for path in run.rglob("*") if path.is_file() and path.parent.name != MARK]
        return {path: path.read_bytes() for path in files}

    before = content()
    assert command(["train", "sft", "--resume", str(run), "learning_rate=1", "save_every=1"]) == 2
    assert content() == before
    words = ["save_every=1", "gradient_checkpointing=true"]
    assert command(["train", "sft", "--resume", str(run), *words]) == 0
    found = sorted(path.name for path in (run / "checkpoints").glob("checkpoint-*"))
    assert found == ["checkpoint-5", "checkpoint-6"]
    assert load_config(SftConfig, run / "config.yaml").save_every == 1
    assert same(weights(run / "final"), weights(finished / "final"))
    assert command(["train", "sft", "--resume", str(run)]) == 0


def test_a_resumed_run_learns_from_the_examples_it_started_with(model, data, tmp_path):
    """In its first epoch as in any later one; blank lines are no examples."""
    own, held_out, run = tmp_path / "own.jsonl", tmp_path / "held-out.jsonl", tmp_path / "run"
    for path in (own, held_out):
        path.write_bytes(data.read_bytes())
    settings = config(model, own, eval_data=held_out)
    stop_at(3, settings, run)
    for path in (own, held_out):
        path.write_text("\n".join(map(json.dumps, ROWS[1:])))
        with pytest.raises(BadInput, match="own.jsonl, or what it names, changed since .* bring it back"):
            train(settings, run, resume=True, log=lambda line: None)
        path.write_bytes(data.read_bytes() + b"\n\n")
    train(settings, run, resume=True, log=lambda line: None)


def test_the_command_line_may_have_written_the_config(model, data, tmp_path):
    settings = config(model, data, max_steps=1)
    (tmp_path / "config.yaml").write_text(save_config(settings))
    assert train(settings, tmp_path, log=lambda line: None).is_dir()


def test_a_finished_run_is_returned(finished, model, data):
    before = (finished / "final" / "model.safetensors").stat().st_mtime_ns
    assert train(config(model, data), finished, resume=True, log=lambda line: None) == finished / "final"
    assert (finished / "final" / "model.safetensors").stat().st_mtime_ns == before


def test_runs_are_not_mixed_up(finished, model, data, tmp_path):
    with pytest.raises(BadInput, match="--resume"):
        train(config(model, data), finished)
    with pytest.raises(BadInput, match="other settings"):
        train(config(model, data, learning_rate=1e-3), finished, resume=True)
    with pytest.raises(BadInput, match="no run to go on with"):
        train(config(model, data), tmp_path / "none", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="expected a folder to write to, got the file"):
        train(config(model, data), tmp_path / "file")


def test_only_the_answer_is_learned(model):
    _, tokenizer, _ = load_checkpoint(str(model))
    example = RewriteExample(
        prompt="three stars", reason="There are three.", rewrite="three large stars", critique="too few"
    )
    row = encode(example, tokenizer, "Rewrite.")
    asked = prompt_ids(tokenizer, "three stars", "too few", "Rewrite.")
    assert row["input_ids"][: len(asked)] == asked
    assert row["labels"][: len(asked)] == [-100] * len(asked)
    answer = row["labels"][len(asked) :]
    assert answer == row["input_ids"][len(asked) :]
    text = "<reason>There are three.</reason><prompt>three large stars</prompt><|im_end|>"
    assert tokenizer.decode(answer) == text


def test_without_reasoning_the_reason_is_left_out(model, data, tmp_path):
    _, tokenizer, _ = load_checkpoint(str(model))
    example = RewriteExample(prompt="three stars", reason="There are three.", rewrite="three large stars")
    row = encode(example, tokenizer, "Rewrite.", reasoning=False)
    answer = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(answer) == "<prompt>three large stars</prompt><|im_end|>"
    settings = config(model, data, max_steps=1, reasoning=False, system=None, max_length=256)
    final = train(settings, tmp_path / "run", log=lambda line: None)
    assert RePromptRewriter(final, device="cpu").system == PLAIN_SYSTEM


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (None, PLAIN_SYSTEM),
        (SYSTEM, PLAIN_SYSTEM),
        (PLAIN_SYSTEM, PLAIN_SYSTEM),
        ("Rewrite.", "Rewrite."),
        ("Answer so: <reason>why</reason><prompt>what</prompt>", None),
    ],
)
def test_a_system_text_that_asks_for_reasons_is_refused_without_reasoning(kept, told, model, data):
    plain = config(model, data, reasoning=False, system=None)
    if told is None:
        with pytest.raises(
            BadInput, match="stored with it asks for reasons, and reasoning is false; give another"
        ):
            system_text(plain, kept, "it")
    else:
        assert system_text(plain, kept, "it") == told
    assert system_text(config(model, data, system=None), kept, "it") == (kept or SYSTEM)
    assert system_text(config(model, data, reasoning=False, system="Own."), kept, "it") == "Own."


def test_the_trainer_takes_the_loss_over_answers_alone(model, data, tmp_path):
    """The first loss of a batch that is all of the data is the mean over all answers' tokens."""
    train(config(model, data, max_steps=1, batch_size=len(ROWS)), tmp_path / "run", log=lambda line: None)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    net, tokenizer, _ = load_checkpoint(str(model))
    answers, prompts = [], []
    for example in read_examples(data):
        row = encode(example, tokenizer, "Rewrite.")
        ids, answer = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:] != -100
        with torch.no_grad():
            scores = net(ids).logits[0, :-1].log_softmax(-1)
        losses = -scores.gather(1, ids[0, 1:, None])[:, 0]
        answers.append(losses[answer])
        prompts.append(losses[~answer])
    assert first == pytest.approx(torch.cat(answers).mean().item(), abs=1e-4)
    assert abs(torch.cat(answers + prompts).mean().item() - first) > 1e-3  # the test can tell


def test_lora_is_merged_and_half_precision_stored(model, data, tmp_path):
    settings = config(model, data, max_steps=2, lora={"r": 4, "alpha": 8}, export_dtype="float16")
    final = train(settings, tmp_path / "run", log=lambda line: None)
    trained = weights(final)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float16}
    assert trained.keys() == weights(model).keys()  # no adapter is left
    assert not (final / "adapter_config.json").exists()
    RePromptRewriter(final, device="cpu")


def test_held_out_loss_is_logged(model, data, tmp_path):
    train(config(model, data, max_steps=2, eval_data=data), tmp_path / "run", log=lambda line: None)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_loss" in row for row in rows)


def test_long_examples_are_dropped_and_counted_or_refused(model, data, tmp_path):
    long = tmp_path / "long.jsonl"
    rows = [*ROWS, {"prompt": "a star", "reason": "word " * 200, "rewrite": "a star"}]
    long.write_text("\n".join(map(json.dumps, rows)))
    said = []
    train(config(model, long, max_steps=1), tmp_path / "run", log=said.append)
    assert any("left out 1 of 25 of the examples" in line for line in said)
    with pytest.raises(BadInput, match="24 of 24 of the examples .* raise max_length"):
        train(config(model, data, max_length=20, max_new_tokens=8), tmp_path / "other", log=said.append)
    assert not (tmp_path / "other").exists()  # the mended call may take the same folder


GOOD = '{"prompt": "p", "reason": "r", "rewrite": "w"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "holds no examples"),
        (b"\n \n", "holds no examples"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (f"{GOOD}\n\n{{".encode(), "line 3: not JSON"),
        (f"{GOOD}\n[1]".encode(), "line 2: "),
        (b'{"prompt": "p", "reason": "r"}', "line 1: rewrite: field required"),
        (b'{"prompt": "p", "reason": "r", "rewrite": "  "}', "line 1: rewrite: "),
        (b'{"prompt": 3, "reason": "r", "rewrite": "w"}', "line 1: prompt: "),
        (b'{"prompt": "p", "reason": "r", "rewrite": "w", "rewritten": "w"}', "line 1: rewritten: "),
        (b'{"prompt": "p", "reason": "<prompt>", "rewrite": "w"}', "line 1: .*cannot be read back"),
        (b'{"prompt": "p", "reason": "r", "rewrite": "..."}', "line 1: .*without words"),
    ],
)
def test_bad_data(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text)
    with pytest.raises(BadInput, match=message) as caught:
        read_examples(path)
    assert "\n" not in str(caught.value)


def test_good_data(tmp_path):
    path = tmp_path / "good.jsonl"
    other = '{"prompt": "猫", "reason": "r", "rewrite": "一只\u2028猫"}'
    path.write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\r\n{other}".encode())
    first, second = read_examples(path)
    assert first == RewriteExample(prompt="p", reason="r", rewrite="w")
    assert second.answer.prompt == "一只 猫"
    with pytest.raises(BadInput, match="cannot read"):
        read_examples(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": "constant"}, "warmup_ratio=0"),
        ({"dtype": "bfloat16"}, "dtype=float32"),
        ({"max_new_tokens": 96}, "max_length"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"learning_rate": 0}, "learning_rate"),
    ],
)
def test_impossible_settings_are_refused_with_a_remedy(changes, message):
    values = {"model": "m", "data": "d", "device": "cpu", "max_length": 96, "max_new_tokens": 32, **changes}
    with pytest.raises(BadInput, match=message):
        parse_config(SftConfig, values, "test")


def test_unknown_settings_are_refused_with_the_near_match():
    with pytest.raises(UnknownName, match="learning_rate"):
        parse_config(SftConfig, {"model": "m", "data": "d", "learning_rat": 1}, "test")


def test_a_folder_without_a_model_is_refused(data, tmp_path, model):
    with pytest.raises(CheckpointError, match="no rewriter at"):
        train(config(tmp_path / "none", data), tmp_path / "run", log=lambda line: None)
    bare = shutil.copytree(model, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        train(config(bare, data), tmp_path / "other", log=lambda line: None)
