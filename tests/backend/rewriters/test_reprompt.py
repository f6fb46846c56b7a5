import json
import shutil
from dataclasses import replace

import pytest
import torch

from reprise.backend.core.errors import BadInput, CheckpointError, Interrupted
from reprise.backend.rewriters.decoding import GumbelNoise
from reprise.backend.rewriters.reprompt import RePromptRewriter, load_checkpoint
from reprise.backend.rewriters.rows import RewriteRow, row_seed

PROMPTS = ["a cat", "a photo of a red circle above a blue square on a grey background", "three stars"]


@pytest.fixture(scope="module")
def rewriter(folder):
    made = RePromptRewriter(folder, device="cpu", max_new_tokens=12, batch_size=5)
    written = made.generate

    # Tags are put around what random weights write, so that it is seen, in place of any that they write.
    def framed(*arguments):
        plain = [(one, one.text.replace("<", "(")) for one in written(*arguments)]
        form = "<reason>r</reason><prompt>x {!r}</prompt>"
        return [replace(one, text=form.format(text)) for one, text in plain]

    made.generate = framed
    return made


def texts(rewriter, *arguments, **options):
    return [[r.prompt for r in variants] for variants in rewriter.rewrite(*arguments, **options)]


def test_equal_calls_give_equal_rewrites(rewriter):
    first = rewriter.rewrite(PROMPTS, variants=3, seed=5)
    torch.manual_seed(999)  # the global generator has no say
    assert rewriter.rewrite(PROMPTS, variants=3, seed=5) == first
    assert [len(variants) for variants in first] == [3, 3, 3]
    assert all(r.rewriter == "reprompt" and r.fallback is None for variants in first for r in variants)


def test_rewrites_do_not_depend_on_neighbours(rewriter):
    together = texts(rewriter, PROMPTS, variants=3, seed=5)
    assert [texts(rewriter, [p], variants=3, seed=5)[0] for p in PROMPTS] == together
    assert texts(rewriter, PROMPTS[::-1], variants=3, seed=5) == together[::-1]
    assert [t[:2] for t in together] == texts(rewriter, PROMPTS, variants=2, seed=5)


def test_rewrite_rows_equals_rewrite(rewriter):
    """A variant is the same in whatever call; rows come in batches of like length."""
    together, told = rewriter.rewrite(PROMPTS, variants=3, seed=5), {}
    rows = [RewriteRow(prompt, variant) for variant in (2, 0) for prompt in PROMPTS]
    rewriter.rewrite_rows(rows, 5, told.__setitem__)
    assert [told[n] for n in range(6)] == [variants[v] for v in (2, 0) for variants in together]
    assert len(told) == 6


def test_padding_moves_logits_by_rounding_only(folder):
    model, tokenizer, _ = load_checkpoint(str(folder))
    short = tokenizer("three stars")["input_ids"]
    padded = torch.tensor([[tokenizer.pad_token_id] * 40 + short])
    mask = torch.tensor([[0] * 40 + [1] * len(short)])
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        alone = model(torch.tensor([short])).logits[0, -1]
        beside = model(padded, attention_mask=mask, position_ids=places).logits[0, -1]
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-5)


def test_variants_seeds_and_critiques_differ(rewriter):
    [variants] = texts(rewriter, ["a cat"], variants=4, seed=5)
    assert len(set(variants)) == 4
    assert texts(rewriter, ["a cat"], variants=4, seed=6) != [variants]
    assert texts(rewriter, ["a cat"], variants=4, seed=5, critiques=["there is no cat"]) != [variants]
    assert texts(rewriter, ["a cat"], variants=4, seed=5, critiques=[None]) == [variants]


def test_the_first_variant_is_the_likeliest(rewriter):
    assert texts(rewriter, ["a cat"], seed=1) == texts(rewriter, ["a cat"], seed=2)
    assert texts(rewriter, ["a cat"], variants=3, seed=5)[0][0] == texts(rewriter, ["a cat"])[0][0]
    asked = [rewriter.tokenizer("a cat")["input_ids"]]
    plain = RePromptRewriter((rewriter.model, rewriter.tokenizer), temperature=1e-5, max_new_tokens=12)
    [sampled], [greedy] = plain.generate(asked, [7]), plain.generate(asked, [None])
    assert (sampled.text, sampled.ids) == (greedy.text, greedy.ids)


def test_completions_carry_their_log_probabilities(folder):
    """Of sampled rows under the tempered distribution, of a greedy one under the model's own."""
    made = RePromptRewriter(folder, device="cpu", max_new_tokens=12, temperature=0.5)
    asked = [made.tokenizer(text)["input_ids"] for text in ("a cat", "three red stars")]
    for one, ids, temperature in zip(made.generate(asked, [3, 4]), asked, (0.5, 0.5)):
        with torch.no_grad():
            logits = made.model(torch.tensor([ids + one.ids])).logits[0, len(ids) - 1 : -1]
        logps = (logits / temperature).log_softmax(-1)[range(len(one.ids)), one.ids]
        assert one.logps == pytest.approx(logps.tolist(), abs=1e-4)
        assert one.truncated == (one.ids[-1] != made.tokenizer.eos_token_id) and len(one.ids) <= 12


def test_row_seeds_depend_on_every_part():
    asked = [(0, "a", None, 0), (1, "a", None, 0), (0, "b", None, 0), (0, "a", "b", 0), (0, "a", None, 1)]
    assert len({row_seed(*one) for one in asked}) == len(asked)
    assert row_seed(0, "a", None, 0) == 7663460883297404022  # kept: records are done again by it


def test_gumbel_noise_samples_from_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
    draws, rows = 20_000, 500
    noise = GumbelNoise(range(rows), "cpu")
    many = logits.expand(rows, -1)
    picked = torch.stack([noise(torch.zeros(rows, 1), many).argmax(-1) for _ in range(draws // rows)])
    share = torch.bincount(picked.ravel(), minlength=5) / draws
    expected = logits.softmax(-1)
    # Five standard errors of a share.
    assert torch.all((share - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt())
    assert share[4] == 0


def test_a_checkpoints_sampling_settings_are_ignored(rewriter, folder, tmp_path):
    """Real checkpoints ask for penalties and top_k; they would bias the draw."""
    where = shutil.copytree(folder, tmp_path / "tuned")
    settings = json.loads((where / "generation_config.json").read_text())
    settings |= {"do_sample": True, "top_k": 1, "repetition_penalty": 5.0, "temperature": 0.1}
    (where / "generation_config.json").write_text(json.dumps(settings))
    tuned = RePromptRewriter(where, device="cpu", max_new_tokens=12)
    asked = [tuned.tokenizer("three stars")["input_ids"]]
    plain = RePromptRewriter((rewriter.model, rewriter.tokenizer), max_new_tokens=12)
    assert tuned.generate(asked, [7]) == plain.generate(asked, [7])
    assert tuned.generate(asked, [None]) == plain.generate(asked, [None])
    assert tuned.model.generation_config.top_k == 1  # the caller's model is left as it was


def test_unparsable_output_falls_back_to_the_prompt(folder):
    rewriter = RePromptRewriter(folder, device="cpu", max_new_tokens=4)
    [[rewrite]] = rewriter.rewrite(["a  cat"])
    assert (rewrite.prompt, rewrite.reason) == ("a  cat", "")
    assert rewrite.fallback == "the answer has no <prompt> (it reached the limit of 4 tokens)"


def test_a_too_long_prompt_is_kept_and_the_others_are_rewritten(rewriter):
    long = "cat " * 10_000
    [[kept], [written]] = rewriter.rewrite([long, "a cat"])
    assert kept.prompt == long
    assert "tokens long" in kept.fallback
    assert written.fallback is None


def test_interrupt_within_a_token(rewriter):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Interrupted):
        rewriter.rewrite(["a cat"], should_stop=stop)
    assert len(asked) == 3


def test_progress_counts_rows(rewriter):
    told = []
    rewriter.rewrite(PROMPTS, variants=3, progress=lambda done, rows: told.append((done, rows)))
    assert told == [(5, 9), (9, 9)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [""]}, "empty"),
        ({"prompts": ["a"], "variants": 0}, "variant"),
        ({"prompts": ["a"], "seed": -1}, "seed"),
        ({"prompts": ["a"], "seed": 2**63}, "seed"),
        ({"prompts": ["a"], "critiques": []}, "one critique"),
    ],
)
def test_bad_input(rewriter, arguments, message):
    with pytest.raises(BadInput, match=message):
        rewriter.rewrite(**arguments)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"batch_size": 0}])
def test_bad_settings(rewriter, options):
    with pytest.raises(BadInput, match="expected temperature"):
        RePromptRewriter((rewriter.model, rewriter.tokenizer), **options)


def test_settings_come_from_the_checkpoint(folder, tmp_path):
    where = shutil.copytree(folder, tmp_path / "trained")
    (where / "reprise.json").write_text('{"system": "Do it.", "max_new_tokens": 9, "temperature": 0.5}')
    made = RePromptRewriter(str(where))
    assert (made.system, made.max_new_tokens, made.temperature, made.top_p) == ("Do it.", 9, 0.5, 1.0)
    assert RePromptRewriter(where, max_new_tokens=3).max_new_tokens == 3


def broken(folder, tmp_path, name, content):
    where = shutil.copytree(folder, tmp_path / "broken")
    if content is None:
        (where / name).unlink()
    else:
        (where / name).write_bytes(content((where / name).read_bytes()))
    return where


def tampered(data: bytes) -> bytes:
    return data.replace(b"model.layers.3.", b"model.layers.9.")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", lambda data: data[:40], "cannot load"),
        ("config.json", lambda data: data.replace(b'"qwen2"', b'"nothing"'), "cannot load"),
        ("config.json", lambda data: data.replace(b'size": 384', b'size": 256'), "rewriter"),
        ("model.safetensors", None, "cannot load"),
        ("model.safetensors", lambda data: data[:1000], "cannot load"),
        ("model.safetensors", lambda data: data[:-1000], "cannot load"),
        ("model.safetensors", lambda data: b"\xff" * 100, "cannot load"),
        ("model.safetensors", tampered, "lacks"),
        ("tokenizer.json", lambda data: data[:100], "cannot load"),
        ("chat_template.jinja", None, "no chat template"),
    ],
)
def test_broken_folders_are_refused(folder, tmp_path, name, content, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        RePromptRewriter(broken(folder, tmp_path, name, content), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", '{"system": 3}', "[1]"])
def test_broken_settings_are_refused(folder, tmp_path, text):
    where = shutil.copytree(folder, tmp_path / "broken")
    (where / "reprise.json").write_text(text)
    with pytest.raises(CheckpointError, match="reprise.json"):
        RePromptRewriter(where)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no rewriter at"):
        RePromptRewriter(str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="no rewriter at"):
        RePromptRewriter(tmp_path / "file")


def test_the_fingerprint_depends_on_weights_and_settings(folder, rewriter):
    same = RePromptRewriter(folder, device="cpu", max_new_tokens=12)
    assert same.fingerprint == rewriter.fingerprint
    assert RePromptRewriter(folder, device="cpu", max_new_tokens=13).fingerprint != same.fingerprint
    other = RePromptRewriter(folder, device="cpu", max_new_tokens=12)
    with torch.no_grad():
        other.model.model.norm.weight[3] += 1
    assert other.fingerprint != same.fingerprint


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(BadInput, match="float23"):
        RePromptRewriter(folder, dtype="float23")
