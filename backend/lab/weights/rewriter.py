"""Makes the tiny rewriter from nothing: a Qwen2 model with a byte-level BPE tokenizer and a chat template.

Stages, each leaving a folder or file in the work folder: an untrained model, its SFT data, the SFT run
(`training/sft`, the same as for any model), the final folder in half precision. The classes and
files are Qwen2's own; only the sizes and the vocabulary are small.

Run: `reprise lab weights rewriter WORK`.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...shapeworld.prompts import sample_prompts
from ...shapeworld.read_back import satisfies
from ...shapeworld.rewrites import triples
from ...shapeworld.tokenizers import byte_pair_tokenizer, vocabulary_words

SEED = 7
VOCABULARY = 2048
CONTEXT = 1024
EXAMPLES = 60_000
_CHAT_WORDS = "system user assistant rewrite prompt last was wrong write answer again so this mended".split()
TAGS = ("<reason>", "</reason>", "<prompt>", "</prompt>")
# A space before the content, so that the first word is the same single token as elsewhere.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n {{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Any:
    """A Qwen2Tokenizer with merges that make every ShapeWorld word one token, with and without a space.

    Any text round-trips; it falls back to bytes.
    """
    from transformers import AddedToken

    text = [" ".join(example.row().values()) for example in triples(2000, SEED)]
    made = byte_pair_tokenizer(text, [*vocabulary_words(), *_CHAT_WORDS], VOCABULARY, CONTEXT)
    # Not special: the parser needs them in the decoded text.
    made.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    made.chat_template = CHAT_TEMPLATE
    return made


def untrained(folder: Path) -> None:
    """Saves the model with random weights, and its tokenizer, into `folder`."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    made = tokenizer()
    torch.manual_seed(SEED)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=-(-len(made) // 64) * 64,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            use_sliding_window=False,
            bos_token_id=None,
            # The default 0.02 is for large widths: here attention would start flat and learn copying late.
            initializer_range=0.06,
            eos_token_id=made.eos_token_id,
            pad_token_id=made.pad_token_id,
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=made.eos_token_id, pad_token_id=made.pad_token_id)
    model.save_pretrained(folder)
    made.save_pretrained(folder)


def data(path: Path, count: int = EXAMPLES, seed: int = SEED) -> None:
    """Writes `count` SFT examples as JSON lines to `path`."""
    beside = path.with_suffix(".tmp")
    with beside.open("w", encoding="utf-8") as file:
        for example in triples(count, seed):
            file.write(json.dumps(example.row(), ensure_ascii=False) + "\n")
    beside.replace(path)


def build(work: Path, log: Callable[[str], None] = print) -> Path:
    """Runs all stages that are not done yet. Returns the final folder."""
    from ...core.config import load_config
    from ...training import shipped_config
    from ...training.sft.config import SftConfig
    from ...training.sft.train import train

    work.mkdir(parents=True, exist_ok=True)
    start, examples, run = work / "untrained", work / "sft.jsonl", work / "sft"
    if not (start / "reprise-done").exists():
        shutil.rmtree(start, ignore_errors=True)
        untrained(start)
        (start / "reprise-done").touch()
    if not examples.exists():
        data(examples)
    settings = shipped_config("sft", "shapeworld")
    config = load_config(SftConfig, settings).model_copy(update={"model": str(start), "data": examples})
    return train(config, run, resume=run.exists(), log=log)


def measure(
    rewriter, per_task: int = 50, seed: int = 0, split: str = "held-out"
) -> dict[str, dict[str, float]]:
    """{task: share of rewrites that were parsed, share that satisfy their prompt, number of rewrites}.

    `rewriter` writes two variants, one greedy and one sampled, for each of `per_task` prompts per task.
    """
    cases = sample_prompts(split, per_task, seed)
    random.Random(seed).shuffle(cases)
    answers = rewriter.rewrite([case.prompt for case in cases], variants=2, seed=seed)
    results: dict[str, list[tuple[bool, bool]]] = {}
    for case, variants in zip(cases, answers, strict=True):
        for one in variants:
            results.setdefault(case.task, []).append((one.fallback is None, satisfies(case, one.prompt)))
    return {
        task: {
            "parsed": sum(parsed for parsed, _ in rows) / len(rows),
            "satisfied": sum(ok for _, ok in rows) / len(rows),
            "rewrites": len(rows),
        }
        for task, rows in sorted(results.items())
    }
