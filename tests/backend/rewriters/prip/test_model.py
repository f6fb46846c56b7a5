"""PRIP's networks at tiny random size, and the real sizes without their weights."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprise.backend.core.errors import BadInput, CheckpointError, UnknownName
from reprise.backend.rewriters.decoding import Decoding, generate
from reprise.backend.rewriters.prip.checkpoint import PripConfig
from reprise.backend.rewriters.prip.model import Prip, untrained
from reprise.backend.rewriters.prip.presets import PRESETS, build, build_vision_tower, find_preset
from reprise.backend.training.common.losses import pivot_error, prompt_error

from .tiny_prip import TINY, save, tiny, tokenizers

PROMPTS = ["three stars", "a photo of a red circle above a blue square on a grey background", "a green heart"]
DECODERS = {
    "qwen2": TINY.decoder,
    "llama": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 160,
        "initializer_range": 0.3,
    },
    # Positions are learned here, so that a wrong one shows.
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 160,
        "initializer_range": 0.3,
    },
}


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("prip") / "tiny")


def pivots_of(model, prompts=PROMPTS):
    with torch.no_grad():
        return model.encode(model.encoder_ids(prompts))


def near(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_every_query_sees_every_other(model):
    [before] = pivots_of(model, ["a cat"])
    other = tiny()
    with torch.no_grad():
        other.encoder.queries.weight[-1] += 1
    [after] = pivots_of(other, ["a cat"])
    assert (after - before).abs().amax(1).min() > 1e-3  # the first one, too: nothing is causal


def test_a_pivot_depends_on_its_prompt_alone(model):
    together = pivots_of(model)
    assert together.shape == (3, 5, 24) and (together[0] - together[1]).abs().max() > 0.1
    for one, prompt in zip(together, PROMPTS):
        near(pivots_of(model, [prompt])[0], one)
    near(pivots_of(model, ["  three\n stars "])[0], together[0])


@pytest.mark.parametrize("kind", DECODERS)
def test_a_completion_depends_on_its_row_alone(kind):
    """Padding on the left moves logits by rounding only, for embeddings as it does for tokens."""
    model = tiny(replace(TINY, decoder=DECODERS[kind]))
    pivots, begun = pivots_of(model), [model.decoder_ids(prompt) for prompt in PROMPTS]
    answers = [model.decoder_ids(", on a plain white ground, sharp")[: 3 + i] for i in range(3)]
    assert len({len(ids) for ids in begun}) > 1
    with torch.no_grad():
        together = model.logits(pivots, begun, answers)
        for i, answer in enumerate(answers):
            alone = model.logits(pivots[i : i + 1], begun[i : i + 1], [answer])[0]
            near(together[i, : len(answer)], alone, 2e-5)
    how, keys = Decoding(6), [None, 5, 6]
    with torch.no_grad():
        written = generate(
            model.decoder, model.decoder_tokenizer, model.decoder_inputs(pivots, begun), keys, how
        )
        for i, one in enumerate(written):
            inputs = model.decoder_inputs(pivots[i : i + 1], begun[i : i + 1])
            assert (
                generate(model.decoder, model.decoder_tokenizer, inputs, keys[i : i + 1], how)[0].ids
                == one.ids
            )


@pytest.mark.parametrize("kind", DECODERS)
def test_logits_equal_those_that_tokens_were_sampled_from(kind):
    model = tiny(replace(TINY, decoder=DECODERS[kind]))
    pivots, begun = pivots_of(model), [model.decoder_ids(prompt) for prompt in PROMPTS]
    with torch.no_grad():
        written = generate(
            model.decoder,
            model.decoder_tokenizer,
            model.decoder_inputs(pivots, begun),
            [None, 3, 4],
            Decoding(7),
            first_tokens=model.continuation_tokens,
        )
        logps = model.logits(pivots, begun, [one.ids for one in written], continuation=True).log_softmax(-1)
    for one, row in zip(written, logps):
        assert len(one.ids) == 7 or not one.truncated
        assert one.logps == pytest.approx(row[range(len(one.ids)), one.ids].tolist(), abs=1e-4)
        assert model.continuation_tokens[one.ids[0]]


def test_the_completion_depends_on_the_pivot(model):
    pivots, begun = pivots_of(model), [model.decoder_ids("a cat")] * 3
    with torch.no_grad():
        logits = model.logits(pivots, begun, [[5]] * 3)[:, 0]
    assert (logits[0] - logits[1]).abs().max() > 0.1 and (logits[0] - logits[2]).abs().max() > 0.1


def test_gradients_reach_the_encoder_alone_through_the_frozen_decoder():
    model = tiny()
    model.requires_grad_(False)
    model.encoder.requires_grad_(True)
    begun, answers = [model.decoder_ids(prompt) for prompt in PROMPTS], [[40, 50, 60], [41, 51], [42]]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pivots = model.encode(model.encoder_ids(PROMPTS))
    logits = model.logits(pivots, begun, answers)
    tokens = torch.tensor([[40, 50, 60], [41, 51, 0], [42, 0, 0]])
    prompt_error(logits, tokens, torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])).backward()
    for name, weight in model.named_parameters():
        reached = weight.grad is not None and bool(weight.grad.abs().max() > 0)
        assert reached == name.startswith("encoder."), name
    torch.optim.SGD(model.encoder.parameters(), 1.0).step()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed and all(name.startswith("encoder.") for name in changed)


def test_gradients_of_the_first_stage_reach_all_of_the_encoder():
    model = tiny()
    pivot_error(model.encode(model.encoder_ids(PROMPTS)), torch.zeros(3, 5, 24)).backward()
    assert all(weight.grad is not None for weight in model.encoder.parameters())
    assert all(weight.grad is None for weight in [*model.decoder.parameters(), *model.projector.parameters()])


def test_pivots_of_pictures_are_standardised_per_number(model):
    other = tiny()
    other.set_statistics(torch.full((5, 24), 2.0), torch.full((5, 24), 4.0))
    near(other.standardise(torch.full((1, 5, 24), 10.0)), torch.full((1, 5, 24), 2.0))


def test_a_continuation_cannot_extend_the_last_word(model):
    begins = {
        model.decoder_tokenizer.decode([token])
        for token in model.continuation_tokens.nonzero()[:, 0].tolist()
    }
    assert {",", ".", " red"} <= begins and not {"red", "s", "<reason>"} & begins
    assert (
        model.continuation_tokens[model.decoder_tokenizer.eos_token_id]
        and len(model.continuation_tokens) == model.decoder.config.vocab_size
    )
    words = {model.decoder_tokenizer.decode([token]) for token in model.word_tokens.nonzero()[:, 0].tolist()}
    assert (
        {"red", " red"} <= words
        and not {",", " "} & words
        and not model.word_tokens[model.decoder_tokenizer.eos_token_id]
    )


def test_control_tokens_in_a_prompt_are_removed(model):
    assert model.decoder_ids("a cat<|im_end|>") == model.decoder_ids("a cat")
    assert model.encoder_ids(["a cat</s>"]) == model.encoder_ids(["a cat"])


def test_a_prompt_beyond_the_encoders_window_is_refused(model):
    with pytest.raises(BadInput, match="tokens long, this refiner reads 32; shorten it"):
        model.encoder_ids(["a cat", "red " * 40])


def test_a_saved_model_is_the_same_and_needs_no_vision_tower(model, folder, tmp_path):
    where = shutil.copytree(folder, tmp_path / "without")
    shutil.rmtree(where / "image")
    again = Prip.from_pretrained(where)
    assert again.state_dict().keys() == model.state_dict().keys() and not again.training
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    near(pivots_of(again), pivots_of(model), 0)
    assert again.config == model.config and again.decoder_ids("a cat") == model.decoder_ids("a cat")
    assert json.loads((where / "reprise.json").read_text())["max_new_tokens"] == 8


def test_transformers_4_can_read_the_tokenizers(tmp_path):
    from transformers import AutoTokenizer

    model = tiny()
    model.encoder_tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_id_0>"]})
    model.save_pretrained(tmp_path / "marked")
    known = json.loads((tmp_path / "marked" / "encoder" / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in known and known["additional_special_tokens"] == ["<extra_id_0>"]
    again = AutoTokenizer.from_pretrained(tmp_path / "marked" / "encoder")
    assert "<extra_id_0>" in again.all_special_tokens and len(again) == len(model.encoder_tokenizer)


def test_half_precision_keeps_t5_in_float32(folder, model):
    half = Prip.from_pretrained(folder, dtype="float16")
    assert {weight.dtype for weight in half.encoder.parameters()} == {torch.float32}
    assert {half.decoder.dtype, half.projector.weight.dtype} == {torch.float16}
    brain = Prip.from_pretrained(folder, dtype="bfloat16")
    assert {weight.dtype for weight in brain.encoder.parameters()} == {torch.bfloat16}
    begun = [model.decoder_ids(prompt) for prompt in PROMPTS]
    with torch.no_grad():
        found = brain.logits(pivots_of(brain), begun, [[5]] * 3)
    assert found.dtype == torch.float32 and found.isfinite().all()


def test_a_model_without_statistics_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match="no pivot statistics yet"):
        build(TINY, *tokenizers()).save_pretrained(tmp_path / "new")


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def without(*names):
    return lambda where: edit(where / "model.safetensors", lambda t: [t.pop(name) for name in names])


def with_(**new):
    return lambda where: edit(where / "model.safetensors", lambda t: t.update(new))


def other_decoder(where):
    wide = {**TINY.decoder, "hidden_size": 64}
    build(replace(TINY, decoder=wide), *tokenizers()).decoder.save_pretrained(where / "decoder")


def other_encoder(where):
    wide = {**TINY.encoder, "d_model": 48}
    build(replace(TINY, encoder=wide), *tokenizers()).encoder.t5.save_pretrained(where / "encoder")


def config(**new):
    def change(where):
        known = json.loads((where / "config.json").read_text())
        (where / "config.json").write_text(json.dumps(known | new))

    return change


def cut(name, length=200):
    return lambda where: (where / name).write_bytes((where / name).read_bytes()[:length])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("pivot_mean", "pivot_std"), "has no pivot statistics .* train the refiner's first stages"),
        (without("pivot_std"), "has no pivot statistics"),
        (with_(pivot_std=torch.zeros(5, 24)), "pivot_std has numbers that are not above 0"),
        (with_(pivot_mean=torch.full((5, 24), torch.nan)), "not finite"),
        (with_(pivot_mean=torch.zeros(5, 25)), r"expected pivot_mean of shape \(5, 24\), got \(5, 25\)"),
        (other_decoder, "decoder .* is 64 wide, this refiner's projector writes 32; put the decoder back"),
        (other_encoder, "encoder .* is 48 wide, this refiner's queries are 32; put the encoder back"),
        (lambda where: shutil.rmtree(where / "decoder"), "no whole refiner: it holds no folder 'decoder'"),
        (lambda where: shutil.rmtree(where / "encoder"), "no whole refiner: it holds no folder 'encoder'"),
        (lambda where: (where / "config.json").unlink(), "no refiner at .*: expected a folder"),
        (config(model_type="qwen2"), "config.json is no refiner's: model_type"),
        (config(queries=7), "does not fit"),
        (config(width=25), "does not fit"),
        (config(windw=7), "windw"),
        (cut("config.json", 20), "config.json is no refiner's"),
        (cut("model.safetensors"), "cannot read"),
        (cut("encoder/model.safetensors"), "cannot load the encoder"),
        (cut("decoder/model.safetensors"), "cannot load the rewriter"),
        (without("encoder.head.bias"), "lacks .*encoder.head.bias"),
        (with_(more=torch.zeros(1)), "more.* besides"),
        (without("projector.weight"), "lacks projector.weight"),
    ],
)
def test_broken_folders_are_refused(folder, tmp_path, spoil, message):
    where = shutil.copytree(folder, tmp_path / "broken")
    spoil(where)
    with pytest.raises(CheckpointError, match=message) as caught:
        Prip.from_pretrained(where)
    assert "\n" not in str(caught.value)


def test_training_starts_from_published_parts(folder):
    torch.manual_seed(3)
    config = PripConfig(queries=4, width=16)
    start = untrained(config, str(folder / "encoder"), str(folder / "decoder"))
    begun = [start.decoder_ids(prompt) for prompt in PROMPTS]
    assert pivots_of(start).shape == (3, 4, 16)
    with torch.no_grad():
        loud = start.projector(torch.randn(200, 16)).std()
        assert start.logits(pivots_of(start), begun, [[5]] * 3).isfinite().all()
        assert float(loud / start.decoder.get_input_embeddings().weight.std()) == pytest.approx(1, abs=0.2)
    with pytest.raises(CheckpointError, match="cannot load the encoder"):
        untrained(config, str(folder / "image"), str(folder / "decoder"))


def count(module):
    return sum(weight.numel() for weight in module.parameters())


# Of the encoder, the decoder and the image side, in millions.
SIZES = {"shapeworld": None, "tinyllama": (751, 1100, 1091), "paper": (751, 6738, 1091)}


@pytest.mark.parametrize("name", SIZES)
def test_presets_have_the_published_sizes(name):
    preset = find_preset(name)
    with torch.device("meta"):
        model, seen = build(preset), build_vision_tower(preset)
    sizes = preset.config.queries, preset.config.width
    assert (preset.image.queries, seen.qformer.config.hidden_size) == sizes
    assert seen.qformer.config.encoder_hidden_size == seen.vision_model.config.hidden_size
    if SIZES[name] is not None:
        assert sizes == (32, 768)
        found = tuple(round(count(part) / 1e6) for part in (model.encoder, model.decoder, seen))
        assert found == SIZES[name]
        assert model.encoder.queries.weight.shape == (32, 1024) and model.encoder.head.out_features == 768
        assert model.projector.weight.shape == (preset.decoder["hidden_size"], 768)
    else:
        small = build(preset, *tokenizers())
        assert count(small.encoder) + count(small.decoder) + count(seen) < 5e6  # 10 MB in half precision


def test_the_papers_encoder_is_as_large_as_t5_large():
    """Appendix A.4 counts 738 M; Flan-T5-Large, which it starts from, has gated layers and 750 M."""
    from transformers import T5Config, T5Model

    plain = {**PRESETS["paper"].encoder, "d_ff": 4096, "feed_forward_proj": "relu"}
    with torch.device("meta"):
        assert round(count(T5Model(T5Config(**plain))) / 1e6) == 738


def test_an_unknown_preset_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'tinyllama'"):
        find_preset("tinylama")
