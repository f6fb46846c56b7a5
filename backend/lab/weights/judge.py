"""Makes the tiny judge from nothing: SmolVLM's architecture (Idefics3), a word-level tokenizer, a chat
template.

Two resumable stages train on exact drawings alone. In `see`, the vision tower learns to name what lies where,
by the embeddings of words. In `base`, the whole model learns to describe drawings, to say whether they show
what a prompt asks for, and what is wrong with them; an auxiliary loss grounds the nouns of each question. The
base has never seen a renderer's picture: for the embedded world it is what a zero-shot VLM is for
photographs. Then `reprise data judge` and `reprise train judge` tune it on the embedded renderer's pictures
and previews.

Run: `reprise lab weights judge WORK [SEED…]`. Each seed tunes one more judge from the same base, on pictures
of its own.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...rewards.vlm.judge import SETTINGS
from ...rewards.vlm.local import load
from ...shapeworld.drawing import draw
from ...shapeworld.scenes import SIZE, random_scene
from ...shapeworld.tokenizers import vocabulary_words
from .assemble import replace_folder
from .grounding import MERGED, PATCH, TOKENS, NounGrounding, patch_naming, to_pixels
from .judge_data import DESCRIBE, by_task, sample_batch
from .muon import muon_and_adamw
from .training import WeightsLoop

SEED = 11
VOCABULARY, CONTEXT = 1536, 512
SEE_STEPS, SEE_BATCH, SEE_RATE = 1500, 32, 3e-3
BASE_STEPS, BASE_BATCH, BASE_RATE = 2500, 32, 1.5e-3
SEEING, FINDING = 1.0, 1.0  # weights of `PatchNaming`'s and `NounGrounding`'s losses in the second stage
RENDERER, REWRITER = "shapeworld", "reprompt"  # they make the pictures of the third stage
PROMPTS, RENDERS = "shapeworld:64", 3  # the prompts, and the pictures of each, as typed and as rewritten
IMAGE, AROUND, WHOLE, ENDED = "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Any:
    """A Qwen2Tokenizer with merges that make every word of ShapeWorld and of a judge's questions one
    token."""
    from transformers import AddedToken

    from ...rewards.vlm.questions import CRITIQUE, QUESTIONS
    from ...shapeworld.tokenizers import byte_pair_tokenizer

    questions = [*QUESTIONS.values(), CRITIQUE, DESCRIBE]
    more = {word.strip('".,?{}') for text in questions for word in text.split()}
    answers = "yes no there is no not were asked for I see none system user assistant".split()
    made = byte_pair_tokenizer(
        questions * 20, sorted({*vocabulary_words(), *more, *answers} - {""}), VOCABULARY, CONTEXT
    )
    marks: Any = [AddedToken(mark, special=True, normalized=False) for mark in (IMAGE, AROUND, WHOLE, ENDED)]
    made.add_tokens(marks, special_tokens=True)
    made.chat_template = CHAT_TEMPLATE
    return made


def processor() -> Any:
    """An Idefics3Processor for pictures of 128 pixels, without tiling."""
    from transformers import Idefics3Processor

    try:  # transformers 5 has one that needs no torchvision
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    except ImportError:
        from transformers import Idefics3ImageProcessor as Idefics3ImageProcessorPil

    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": SIZE}, max_image_size={"longest_edge": SIZE}, do_image_splitting=False
    )
    return Idefics3Processor(
        image_processor=pictures, tokenizer=tokenizer(), image_seq_len=TOKENS**2, chat_template=CHAT_TEMPLATE
    )


def untrained(folder: Path) -> None:
    """Saves the model with random weights, 1.6 M parameters, and its processor into `folder`."""
    from transformers import GenerationConfig, Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

    made = processor()
    vocabulary = made.tokenizer
    torch.manual_seed(SEED)
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config={
                "hidden_size": 96,
                "intermediate_size": 288,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": SIZE,
                "patch_size": PATCH,
                "initializer_range": 0.1,
            },
            text_config=LlamaConfig(
                vocab_size=-(-len(vocabulary) // 64) * 64,
                hidden_size=128,
                intermediate_size=384,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=CONTEXT,
                tie_word_embeddings=True,
                initializer_range=0.06,
                bos_token_id=None,
                eos_token_id=vocabulary.eos_token_id,
                pad_token_id=vocabulary.pad_token_id,
            ),
            scale_factor=MERGED,
            image_token_id=vocabulary.convert_tokens_to_ids(IMAGE),
            tie_word_embeddings=True,
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=vocabulary.eos_token_id, pad_token_id=vocabulary.pad_token_id
    )
    model.save_pretrained(folder)
    made.save_pretrained(folder)


def train_vision(work: Path, seed: int = SEED, steps: int = SEE_STEPS, log: Callable = print) -> Path:
    """The first stage; saves `work/see`."""
    done = work / "see"
    if done.exists():
        return done
    start = work / "untrained"
    if not (start / "reprise-done").exists():
        shutil.rmtree(start, ignore_errors=True)
        untrained(start)
        (start / "reprise-done").touch()
    made, model = load(start, torch.float32)
    model.requires_grad_(True).train()
    eyes = patch_naming(model, made.tokenizer)
    eyes.requires_grad_(False)
    for part in (model.model.vision_model, model.model.connector, model.get_input_embeddings()):
        part.requires_grad_(True)
    eyes.scale.requires_grad_(True)
    trained = nn.ModuleDict({"vision": model.model.vision_model, "connector": model.model.connector})
    optimizers = muon_and_adamw(trained, ".layers.", rate=SEE_RATE)
    optimizers[1].add_param_group({"params": [eyes.scale, model.get_input_embeddings().weight]})
    loop = WeightsLoop(eyes, optimizers, work / "see.ckpt", steps, seed, log=log)

    def take_step(rng: random.Random, step: int) -> float:
        scenes = [random_scene(rng) for _ in range(SEE_BATCH)]
        pictures = to_pixels([draw(scene) for scene in scenes])
        eyes(pictures)
        if step % 100 == 0:
            log(f"things named: {eyes.accuracy(scenes):.3f}")
        loss = eyes.loss(scenes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        return loss.item()

    loop.run(take_step)
    return _save(model, made, done)


def train_base(work: Path, seed: int = SEED, steps: int = BASE_STEPS, log: Callable = print) -> Path:
    """The second stage, from `work/see`; saves `work/base`."""
    from ...rewards.vlm.local import LocalVLM
    from ...training.judge.batch import encode, losses

    done = work / "base"
    if done.exists():
        return done
    vlm = LocalVLM(work / "see", device="cpu", dtype="float32")
    vlm.model.requires_grad_(True).train()
    eyes = patch_naming(vlm.model, vlm.tokenizer)
    cases, recent = by_task(), defaultdict[str, list[float]](list)
    finding = NounGrounding(vlm.model, vlm.tokenizer)
    both = nn.ModuleDict({"eyes": eyes, "finding": finding})
    optimizers = muon_and_adamw(both, ".layers.", rate=BASE_RATE)
    loop = WeightsLoop(both, optimizers, work / "base.ckpt", steps, seed, log=log)

    def take_step(rng: random.Random, step: int) -> float:
        asks, scenes = sample_batch(rng, cases, BASE_BATCH)
        batch = encode(vlm, asks)
        found = losses(vlm, batch)
        named = eyes.loss(scenes)
        pointed = finding.loss(batch.inputs["input_ids"], batch.starts, scenes)
        (found.mean() + SEEING * named + FINDING * pointed).backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for one, ask in zip(found.tolist(), asks, strict=True):
            recent[ask.question.split()[0] + ("" if isinstance(ask.answer, bool) else "…")].append(one)
        if step % 100 == 99:
            of_kinds = ", ".join(f"{kind} {sum(row) / len(row):.3f}" for kind, row in sorted(recent.items()))
            log(f"{of_kinds}; names {named.item():.3f}, nouns {pointed.item():.3f}")
            recent.clear()
        return found.mean().item()

    loop.run(take_step)
    return _save(vlm.model, vlm.processor, done)


def _save(model: Any, made: Any, folder: Path) -> Path:
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    model.eval().save_pretrained(beside)
    made.save_pretrained(beside)
    return beside.rename(folder)


def tune(work: Path, log: Callable[[str], None] = print, seed: int = 0) -> Path:
    """The third stage: tunes `work/base` on the renderer's pictures and previews, labelled by the detector.

    Each prompt is drawn as typed, which mostly fails, and as rewritten, which mostly succeeds. From one kind
    alone, a judge would learn which prompts fail. `seed` is the seed of pictures and training. Returns the
    run's folder `final`, float16.
    """
    from functools import partial

    from ...factory import open_renderer, open_reward, open_rewriter, renderer_settings
    from ...storage.files import write_whole
    from ...training.judge.make_data import Labels, make_data, read_sources
    from ...training.rollouts.prompts import read_prompts
    from .ablation import run_of

    prompts_file, suffix = work / "asked.jsonl", f"-{seed}" if seed else ""
    data, run = work / f"judge{suffix}.jsonl", work / f"tuned{suffix}"
    if not prompts_file.exists():
        texts = [one.prompt for one in read_prompts(PROMPTS)]
        rewrites = open_rewriter(REWRITER).rewrite(texts)
        lines = [
            {"prompt": text, **more}
            for text, (rewrite,) in zip(texts, rewrites, strict=True)
            for more in ({}, {"system": rewrite.prompt})
        ]
        write_whole(prompts_file, "".join(json.dumps(line) + "\n" for line in lines))
    if not data.exists():
        make_data(
            data,
            read_sources(str(prompts_file), RENDERS, seed),
            partial(open_renderer, renderer_settings(RENDERER)),
            open_reward(RENDERER),
            Labels(0.5),
            made_by={"renderer": RENDERER, "steps": None},
        )
    settings = {"model": str(work / "base"), "data": str(data), "seed": seed}
    return run_of("judge", settings, run, log)


def assemble(model: Path, out: Path) -> Path:
    """Replaces `out` by the judge in the folder `model`, in half precision."""
    made = out.with_name(f"{out.name}.half")
    processor, half = load(model, torch.float16)
    shutil.rmtree(made, ignore_errors=True)
    half.save_pretrained(made)
    processor.save_pretrained(made)
    if (model / SETTINGS).exists():
        shutil.copy2(model / SETTINGS, made / SETTINGS)
    replace_folder(made, out)
    shutil.rmtree(made)
    return out


def build(work: Path, log: Callable[[str], None] = print) -> Path:
    """Runs all three stages that are not done yet. Returns the tuned judge's folder; the base is
    `work/base`."""
    work.mkdir(parents=True, exist_ok=True)
    for name, stage in (("see", train_vision), ("base", train_base), ("tuned", tune)):
        log(f"stage: {name}")
        made = stage(work, log=log)
    return made
