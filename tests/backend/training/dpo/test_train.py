"""DPO of a rewriter on a rewriter of two layers."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.core.config import parse_config
from reprise.backend.core.errors import BadInput
from reprise.backend.preferences.store import PairText, RewritePair, Store
from reprise.backend.rewriters.prompting import answer_ids, prompt_ids
from reprise.backend.rewriters.reprompt import RePromptRewriter, load_checkpoint
from reprise.backend.training.dpo.config import DpoConfig
from reprise.backend.training.dpo.data import answer_of, encode, usable_rewrites
from reprise.backend.training.dpo.train import train

THINGS = ("star", "ring", "cross", "heart")


def text(color, thing, score, **changes):
    given = {"reason": f"The {color} one.", "rewrite": f"a large {color} {thing}", **changes}
    return PairText(score=score, **given)


def pair(thing, chosen=None, rejected=None, margin=0.8, **changes):
    return RewritePair(
        **{
            "prompt": f"a {thing}",
            "chosen": chosen or text("red", thing, 0.9),
            "rejected": rejected or text("blue", thing, 0.1),
            "reward": "redness",
            "margin": margin,
            "source": "grpo",
            "run": "runs/a",
            **changes,
        }
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Red rewrites led to better pictures than blue ones."""
    made = Store(tmp_path_factory.mktemp("store"), create=True)
    made.add_rewrites(pair(thing) for thing in THINGS)
    return made


def settings(model, store, **changes):
    return DpoConfig(
        **{
            "model": str(model),
            "preferences": store.folder,
            "max_steps": 6,
            "batch_size": 3,
            "device": "cpu",
            "learning_rate": 5e-3,
            "warmup_ratio": 0.0,
            "max_length": 96,
            "save_every": 2,
            "log_every": 1,
            "gradient_checkpointing": False,
            **changes,
        }
    )


def quiet(line):
    pass


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(one, other):
    one, other = (load_file(run / "final" / "model.safetensors") for run in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def whole(taught, store, tmp_path_factory):
    """Six steps of two batches: three passes over the pairs."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    return train(settings(taught, store), run, log=quiet).parent


def test_it_starts_at_log_2_and_learns(whole):
    found = rows(whole)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert found[-1]["loss"] < 0.6 and found[-1]["rewards/accuracies"] == 1.0


def test_better_rewrites_become_more_likely(whole, taught):
    def share(folder):
        """P(red) against P(blue) of the first colour, given the reason's beginning."""
        model, tokenizer, _ = load_checkpoint(str(folder))
        ids = prompt_ids(tokenizer, "a star", system="Rewrite.")
        ids += tokenizer("<reason>The", add_special_tokens=False)["input_ids"]
        red, blue = (
            tokenizer(f" {color}", add_special_tokens=False)["input_ids"][0] for color in ("red", "blue")
        )
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        return (logits[red] - logits[blue]).item()

    assert share(whole / "final") > share(taught) + 0.5
    made = RePromptRewriter(whole / "final", device="cpu")
    assert made.system == "Rewrite." and made.max_new_tokens == 32 and made.temperature == 0.7


class Killed(Exception):
    pass


@pytest.mark.parametrize("changes", [{}, {"lora": {"r": 2}}])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_killed_and_resumed_equals_never_killed(at, changes, whole, taught, store, tmp_path):
    config = settings(taught, store, **changes)
    expected = whole
    if changes:
        expected = tmp_path / "whole"
        train(config, expected, log=quiet)

    def log(line):
        if line.startswith(f"step {at}/"):
            raise Killed

    run, said = tmp_path / "run", []
    with pytest.raises(Killed):
        train(config, run, log=log)
    assert not (run / "final").exists()
    own = Store(store.folder)
    other = pair("moon", prompt=f"a moon {tmp_path.name}")  # mined meanwhile
    own.add_rewrites([other])
    own.strike([own.rewrites()[0].id])
    train(config, run, resume=True, log=said.append)
    own.strike([other.id], [own.all_rewrites()[0].id])
    assert ("from the start" if at == 1 else f"going on from checkpoint-{at // 2 * 2}") in " ".join(said)
    assert same(run, expected)
    assert [(row["step"], row["loss"]) for row in rows(run)] == [
        (row["step"], row["loss"]) for row in rows(expected)
    ]


def test_a_finished_run_is_returned(whole, taught, store):
    assert train(settings(taught, store), whole, resume=True, log=quiet) == whole / "final"
    with pytest.raises(BadInput, match="--resume"):
        train(settings(taught, store), whole, log=quiet)


def test_pairs_are_built_as_inference_builds_them(taught):
    _, tokenizer, _ = load_checkpoint(str(taught))
    config = DpoConfig(model="m", preferences=Path("p"), max_length=96)
    [row] = encode([pair("star")], tokenizer, "Rewrite.", config, quiet)
    assert row["prompt_ids"] == prompt_ids(tokenizer, "a star", system="Rewrite.")
    assert row["chosen_ids"] == answer_ids(tokenizer, answer_of(text("red", "star", 1.0), True))
    assert tokenizer.decode(row["rejected_ids"]) == (
        "<reason>The blue one.</reason><prompt>a large blue star</prompt><|im_end|>"
    )
    plain = config.model_copy(update={"reasoning": False})
    [row] = encode([pair("star")], tokenizer, "Rewrite.", plain, quiet)
    assert tokenizer.decode(row["chosen_ids"]) == "<prompt>a large red star</prompt><|im_end|>"


def test_pairs_that_cannot_be_written_are_left_out_and_long_ones_refused(taught):
    _, tokenizer, _ = load_checkpoint(str(taught))
    config, said = DpoConfig(model="m", preferences=Path("p"), max_length=96), []
    odd = pair("ring", chosen=text("red", "ring", 0.9, reason="Not <prompt>."))
    alike = pair("heart", rejected=text("red", "heart", 0.1, reason="Another."))
    plain = config.model_copy(update={"reasoning": False})
    assert len(encode([pair("star"), odd], tokenizer, "Rewrite.", config, said.append)) == 1
    assert "1 that cannot be written" in said[0]
    assert len(encode([pair("star"), alike], tokenizer, "Rewrite.", plain, said.append)) == 1
    with pytest.raises(BadInput, match="1 are longer than max_length=96"):
        encode([pair("star"), pair("ring", prompt="a ring " * 60)], tokenizer, "Rewrite.", config, quiet)


def test_nothing_to_learn_from(store, taught, tmp_path):
    with pytest.raises(BadInput, match="all 4 pairs .*are ties: none is 0.9 apart, the widest 0.8"):
        usable_rewrites(store, None, 0.9)
    with pytest.raises(BadInput, match="only of redness"):
        usable_rewrites(store, "x", 0.0)
    with pytest.raises(BadInput, match="are ties"):
        train(settings(taught, store, margin=2.0), tmp_path / "run", log=quiet)
    assert not (tmp_path / "run").exists()
    struck = Store(tmp_path / "store", create=True)
    struck.add_rewrites([pair("star")])
    struck.strike([pair("star").id])
    with pytest.raises(BadInput, match="not struck"):
        usable_rewrites(struck, None, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0}, "beta"),
        ({"scheduler": "constant"}, "warmup_ratio=0"),
        ({"device": "cpu", "dtype": "bfloat16"}, "dtype=float32"),
        ({"lora": {"dropout": 0.1}}, "lora.dropout=0"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(BadInput, match=message):
        parse_config(DpoConfig, {"model": "m", "preferences": "p", **changes}, "test")
