"""Promptist's format against its demo's own steps, at tiny random size."""

import pytest
import torch

from reprise.backend.core.errors import BadInput
from reprise.backend.rewriters.decoding import Completion
from reprise.backend.rewriters.promptist import PromptistRewriter

from .prip.tiny_prip import tokenizers

PROMPTS = ["a cat", "  three red stars on a plain white ground "]


@pytest.fixture(scope="module")
def parts():
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tokenizers()[1]
    torch.manual_seed(5)
    end = tokenizer.eos_token_id
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=2048,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            initializer_range=0.3,
            eos_token_id=end,
            bos_token_id=end,
            pad_token_id=end,
        )
    ).eval()
    return model, tokenizer


@pytest.fixture(scope="module")
def promptist(parts):
    return PromptistRewriter(parts, max_new_tokens=12)


def demo(model, tokenizer, plain_text):
    """What huggingface.co/spaces/microsoft/Promptist does, but for the number of tokens."""
    ids = tokenizer(plain_text.strip() + " Rephrase:", return_tensors="pt").input_ids
    end = tokenizer.eos_token_id
    outputs = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=12,
        num_beams=8,
        num_return_sequences=8,
        eos_token_id=end,
        pad_token_id=end,
        length_penalty=-1.0,
    )
    texts = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    return texts[0].replace(plain_text.strip() + " Rephrase:", "").strip()


def test_it_equals_the_demo(parts, promptist):
    found = [variants[0].prompt for variants in promptist.rewrite(PROMPTS)]
    assert found == [" ".join(demo(*parts, prompt).split()) for prompt in PROMPTS]


def test_defaults_are_the_papers(parts):
    made = PromptistRewriter(parts)
    assert (made.max_new_tokens, made.beams, made.length_penalty) == (75, 8, -1.0)


def test_further_variants_are_sampled_by_seed_independent_of_neighbours(promptist):
    def texts(prompts, variants, seed):
        return [[r.prompt for r in found] for found in promptist.rewrite(prompts, variants, seed)]

    together = texts(PROMPTS, 3, 5)
    assert all(len(set(found)) == 3 for found in together)
    assert [texts([prompt], 2, 5)[0] for prompt in PROMPTS] == [found[:2] for found in together]
    other = texts(PROMPTS, 3, 6)
    assert [found[0] for found in other] == [found[0] for found in together] and other != together


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (" a cat, 4k", "a cat, 4k"),
        ("a cat Rephrase: a cat\n, 4k ", "a cat , 4k"),
    ],
)
def test_the_request_is_removed_from_the_answer(promptist, text, prompt):
    assert promptist.to_rewrite(Completion(text, [], [], False), "a cat").prompt == prompt


def test_an_answer_without_words_keeps_the_prompt(promptist):
    one = promptist.to_rewrite(Completion(" , ", [], [], False), "a cat")
    assert (one.prompt, one.fallback) == ("a cat", "the answer holds no words")


def test_bad_input(promptist):
    with pytest.raises(BadInput, match="the prompt is empty"):
        promptist.rewrite([" "])
    [[kept]] = promptist.rewrite(["red " * 120])
    assert "this rewriter reads 116" in (kept.fallback or "")
