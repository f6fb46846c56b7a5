"""A rewriter of two layers that was taught to answer in the right form, with one of three colours."""

import json
from pathlib import Path

import pytest
import torch

from . import world

THINGS = ("star", "ring", "cross", "heart")
ROWS = [
    {"prompt": f"a {thing}", "reason": f"The {color} one.", "rewrite": f"a large {color} {thing}"}
    for thing in THINGS
    for color in world.COLORS
]


def half_write(run, weights):
    """As a kill leaves a run: the next checkpoint half written, with a file `weights`, and a line, too."""
    half = run / "checkpoints" / "checkpoint-99"
    half.mkdir(parents=True)
    (half / weights).write_bytes(b"half")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The world's renderer and judges have names for these tests, and for no others."""
    with pytest.MonkeyPatch.context() as patch:
        for table, name, where in world.NAMES:
            patch.setitem(table, name, where)
        yield


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """Folder of a rewriter that writes one of three colours, each about as often."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from reprise.backend.lab.weights.rewriter import tokenizer
    from reprise.backend.training.sft.config import SftConfig
    from reprise.backend.training.sft.train import train

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("taught")
    made = tokenizer()
    torch.manual_seed(0)
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(made),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            eos_token_id=made.eos_token_id,
            pad_token_id=made.pad_token_id,
        )
    ).save_pretrained(folder / "start")
    made.save_pretrained(folder / "start")
    (folder / "sft.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    settings = SftConfig(
        model=str(folder / "start"),
        data=folder / "sft.jsonl",
        system="Rewrite.",
        max_steps=80,
        batch_size=12,
        learning_rate=1e-2,
        max_length=96,
        max_new_tokens=32,
        device="cpu",
        save_every=80,
        gradient_checkpointing=False,
        temperature=0.7,
    )
    return train(settings, folder / "run", log=lambda line: None)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    """A file of four prompts, one of them in JSON."""
    path = tmp_path_factory.mktemp("prompts") / "train.txt"
    lines = [f"a {thing}" for thing in THINGS[:3]] + [json.dumps({"prompt": "a heart", "judged_as": "love"})]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return Path(path)
