"""A chat model behind an endpoint, and a local one that was never trained for this: both zero-shot."""

import json

import pytest

from reprise.backend.core.errors import AnswerRefused, BadInput, EndpointError, Interrupted
from reprise.backend.core.registry import REWRITERS, resolve
from reprise.backend.core.types import Rewrite
from reprise.backend.rewriters.chat import ChatRewriter
from reprise.backend.rewriters.prompting import SYSTEM, build_messages
from reprise.backend.rewriters.reprompt import RePromptRewriter
from reprise.backend.rewriters.rows import RewriteRow

from ...fake_endpoint import GOOD, MODEL, answer, closed_url, playing, refusal


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("REPRISE_ENDPOINT_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def echo(body):
    """An answer that holds what was asked, so that rewrites can be compared."""
    asked = json.dumps([body["messages"][-1]["content"], body["seed"], body["temperature"]])
    return answer(f"<reason>r</reason><prompt>{asked}</prompt>")


def test_it_uses_the_shared_prompt_builder_and_parser(endpoint):
    rewriter = resolve("rewriter", REWRITERS, "chat")(endpoint.url, MODEL)
    assert rewriter.rewrite(["a cat"]) == [
        [Rewrite("one cat, in the middle", "a grey cat on a red sofa", "chat")]
    ]
    [request] = endpoint.requests
    assert request.body["messages"] == build_messages("a cat")
    assert request.body["temperature"] == 0 and request.body["max_tokens"] == 2048


def test_a_critique_goes_into_the_users_turn(endpoint):
    ChatRewriter(endpoint.url, MODEL).rewrite(["a cat"], critiques=["there is no cat"])
    assert endpoint.requests[0].body["messages"] == build_messages("a cat", "there is no cat")


def test_equal_calls_send_equal_requests_whatever_the_neighbours():
    with playing(echo) as server:
        rewriter = ChatRewriter(server.url, MODEL)
        together = rewriter.rewrite(["a cat", "a dog"], variants=3, seed=5)
        assert rewriter.rewrite(["a cat", "a dog"], variants=3, seed=5) == together
        assert [rewriter.rewrite([p], variants=3, seed=5)[0] for p in ("a cat", "a dog")] == together
        assert [rewriter.rewrite([p], variants=2, seed=5)[0] for p in ("a cat", "a dog")] == [
            variants[:2] for variants in together
        ]
        assert rewriter.rewrite(["a cat"], variants=3, seed=6)[0] != together[0]
        seeds = [json.loads(rewrite.prompt)[1] for variants in together for rewrite in variants]
        assert len(set(seeds)) == 6 and all(0 <= seed < 2**31 for seed in seeds)
        # The first is the likeliest, the others are sampled.
        assert [[json.loads(r.prompt)[2] for r in variants] for variants in together] == [[0, 0.9, 0.9]] * 2


def test_rewrite_rows_equals_rewrite_and_survives_a_refused_row():
    def play(body):
        return refusal(400, "unsafe") if "dog" in body["messages"][-1]["content"] else echo(body)

    with playing(play) as server:
        rewriter, told = ChatRewriter(server.url, MODEL), {}
        rows = [RewriteRow("a cat", 2), RewriteRow("a dog", 0), RewriteRow("a cat", 0)]
        rewriter.rewrite_rows(rows, 5, told.__setitem__)
        [[first, _, third]] = rewriter.rewrite(["a cat"], variants=3, seed=5)
        assert (told[0], told[2]) == (third, first)
        assert isinstance(told[1], AnswerRefused) and "unsafe" in str(told[1])
        with pytest.raises(EndpointError, match="unsafe"):
            rewriter.rewrite(["a cat", "a dog"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Sure! A lovely cat.", "has no <prompt>"),
        ("<prompt>one</prompt><prompt>two</prompt>", "has 2 prompts"),
        ("<reason>r</reason><prompt>...</prompt>", "has a prompt without words"),
    ],
)
def test_an_unreadable_answer_falls_back_to_the_prompt(text, why):
    with playing(answer(text)) as server:
        [[rewrite]] = ChatRewriter(server.url, MODEL).rewrite(["a  cat"])
        assert (rewrite.prompt, rewrite.reason) == ("a  cat", "") and why in (rewrite.fallback or "")


def test_a_truncated_answer_names_the_limit():
    with playing(answer("<reason>well, let me", finish="length")) as server:
        [[rewrite]] = ChatRewriter(server.url, MODEL, max_new_tokens=8).rewrite(["a cat"])
        assert rewrite.fallback == "the answer ends before </reason> (it reached the limit of 8 tokens)"


def test_one_unreadable_variant_leaves_the_others(endpoint):
    endpoint.plays = [answer("no"), answer(GOOD)]
    [variants] = ChatRewriter(endpoint.url, MODEL).rewrite(["a cat"], variants=3)
    assert sorted(bool(rewrite.fallback) for rewrite in variants) == [False, False, True]


def test_reasoning_of_a_model_is_not_part_of_the_answer():
    with playing(answer(f"<think>maybe <prompt>this</prompt>?</think>{GOOD}")) as server:
        assert ChatRewriter(server.url, MODEL).rewrite(["a cat"])[0][0].prompt == "a grey cat on a red sofa"


def test_a_failing_server_is_an_error_not_a_fallback():
    with playing(refusal(401, "no key")) as server, pytest.raises(EndpointError, match="wants a key"):
        ChatRewriter(server.url, MODEL).rewrite(["a cat"])
    with pytest.raises(EndpointError, match="cannot reach"):
        ChatRewriter(closed_url(), MODEL).rewrite(["a cat"])


def test_stop_and_progress():
    with playing(answer(GOOD, delay=20)) as server:
        with pytest.raises(Interrupted):
            ChatRewriter(server.url, MODEL).rewrite(["a cat"], 2, should_stop=lambda: bool(server.requests))
    with playing() as server:
        told = []
        ChatRewriter(server.url, MODEL).rewrite(["a cat"], 3, progress=lambda *seen: told.append(seen))
        assert told[-1] == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [" "]}, "empty"),
        ({"prompts": ["a"], "variants": 0}, "variant"),
        ({"prompts": ["a"], "seed": -1}, "seed"),
        ({"prompts": ["a"], "critiques": []}, "one critique"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(endpoint, arguments, message):
    with pytest.raises(BadInput, match=message):
        ChatRewriter(endpoint.url, MODEL).rewrite(**arguments)
    assert endpoint.requests == []


@pytest.mark.parametrize("options", [{"temperature": 0}, {"max_new_tokens": 0}, {"timeout": 0}])
def test_bad_settings(options):
    with pytest.raises(BadInput, match="expected"):
        ChatRewriter("http://127.0.0.1/v1", MODEL, **options)


def test_the_fingerprint_depends_on_model_and_settings():
    made = [
        ChatRewriter(url, model, temperature=t)
        for url, model, t in [
            ("http://a/v1", "m", 0.9),
            ("http://b/v1", "m", 0.9),
            ("http://a/v1", "n", 0.9),
            ("http://a/v1", "m", 0.5),
            ("http://a/v1/", "m", 0.9),
        ]
    ]
    assert len({one.fingerprint for one in made}) == 4 and made[0].fingerprint == made[4].fingerprint


def test_a_local_chat_model_works_zero_shot(folder):
    """A Hugging Face folder without our reprise.json: the default system text and a clean fallback."""
    assert not (folder / "reprise.json").exists()
    rewriter = RePromptRewriter(folder, device="cpu", max_new_tokens=24)
    assert rewriter.system == SYSTEM and rewriter.temperature == 0.9
    asked = []
    written = rewriter.generate

    def seen(ids, *rest):
        asked.extend(rewriter.tokenizer.decode(row) for row in ids)
        return written(ids, *rest)

    rewriter.generate = seen
    [variants] = rewriter.rewrite(["a red circle"], variants=2, seed=1)
    assert "Answer in exactly this form" in asked[0] and "a red circle" in asked[0]
    for rewrite in variants:  # random weights: words without the form
        assert rewrite.prompt == "a red circle" and rewrite.fallback


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_other_architectures_work_the_same_way(tokenizer, tmp_path, architecture):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if architecture == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=2048,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=2048,
                n_embd=32,
                n_layer=2,
                n_head=2,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rewriter = RePromptRewriter(tmp_path, device="cpu", max_new_tokens=8)
    [[rewrite]] = rewriter.rewrite(["a red circle"])
    assert rewrite.prompt == "a red circle" and "has no <prompt>" in (rewrite.fallback or "")
