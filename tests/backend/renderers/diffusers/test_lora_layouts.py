"""LoRAs in the layouts of every common trainer: the pictures that diffusers and peft draw with them."""

import pytest
import torch
from safetensors.torch import save_file

from reprise.backend.core.errors import BadInput, CheckpointError, Unsupported
from reprise.backend.core.types import Job
from reprise.backend.lab.pipelines.recent import RECENT
from reprise.backend.renderers.diffusers.call import CallArguments, invoke
from reprise.backend.renderers.diffusers.lora import apply_loras
from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer

from ..conftest import SETTINGS, build
from .drawing import denoiser_of, drawn


def matrices(out: int, into: int, rank: int = 2, seed: int = 0):
    made = torch.Generator().manual_seed(out * 1000 + into + seed)
    return torch.randn(rank, into, generator=made) * 0.3, torch.randn(out, rank, generator=made) * 0.3


def component_of(pipe):
    return "unet" if hasattr(pipe, "unet") else "transformer"


def linears(model, words):
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(word in name for word in words)
    ]


def adapted(pipe, file, strength=1.0):
    apply_loras([(file, strength)], pipe, component_of(pipe))
    return drawn(pipe)


def merged(pipe, deltas):
    """What it should be: {module of the denoiser: what its weight gains}."""
    with torch.no_grad():
        for name, delta in deltas.items():
            denoiser_of(pipe).get_submodule(name).weight += delta
    return drawn(pipe)


# Layouts with diffusers' names of modules -----------------------------------------------------------------

DOTTED = {
    "diffusers": "{component}.{module}.lora_{half}.weight",
    "peft": "base_model.model.{module}.lora_{half}.weight",
    "peft in training": "base_model.model.{module}.lora_{half}.default.weight",
    "ai-toolkit": "diffusion_model.{module}.lora_{half}.weight",
    "bare": "{module}.lora_{half}.weight",
    "kohya": "lora_unet_{flat}.lora_{down}.weight",
    "OneTrainer": "lora_transformer_{flat}.lora_{down}.weight",
    "LyCORIS": "lycoris_{flat}.lora_{down}.weight",
    "diffusers of old": "{component}.{module}.lora.{down}.weight",
}


@pytest.mark.parametrize("layout", DOTTED)
@pytest.mark.parametrize("family", ["flux", "sd1", "pixart"])
def test_a_layout_is_read(family, layout, tmp_path):
    pipe = build(family)
    plain, tensors, deltas = drawn(pipe), {}, {}
    for module in linears(denoiser_of(pipe), [".attn", "ff."]):
        weight = denoiser_of(pipe).get_submodule(module).weight
        down, up = matrices(*weight.shape)
        names = {"component": component_of(pipe), "module": module, "flat": module.replace(".", "_")}
        tensors[DOTTED[layout].format(half="A", down="down", **names)] = down
        tensors[DOTTED[layout].format(half="B", down="up", **names)] = up
        if "{flat}" in DOTTED[layout]:
            tensors[DOTTED[layout].format(half="", down="", **names).partition(".")[0] + ".alpha"] = (
                torch.tensor(1.0)
            )
        deltas[module] = up @ down * (0.5 if "{flat}" in DOTTED[layout] else 1.0)
    save_file(tensors, tmp_path / "l.safetensors")
    expected = merged(build(family), deltas)
    assert (expected - plain).abs().max() > 0.01
    torch.testing.assert_close(adapted(pipe, tmp_path / "l.safetensors"), expected, rtol=1e-4, atol=1e-4)


# Layouts with original names, against diffusers' own loader -----------------------------------------------

BFL = {
    "double_blocks.0.img_attn.qkv": (96, 32),
    "double_blocks.0.img_attn.proj": (32, 32),
    "double_blocks.0.txt_attn.qkv": (96, 32),
    "double_blocks.0.img_mlp.0": (128, 32),
    "double_blocks.0.txt_mlp.2": (32, 128),
    "double_blocks.0.img_mod.lin": (192, 32),
    "single_blocks.0.linear2": (32, 160),
    "single_blocks.0.modulation.lin": (96, 32),
}


def bfl(names, dotted: bool):
    tensors = {}
    for name, size in names.items():
        down, up = matrices(*size)
        if dotted:
            tensors |= {
                f"diffusion_model.{name}.lora_A.weight": down,
                f"diffusion_model.{name}.lora_B.weight": up,
            }
        else:
            flat = "lora_unet_" + name.replace(".", "_")
            tensors |= {
                f"{flat}.lora_down.weight": down,
                f"{flat}.lora_up.weight": up,
                f"{flat}.alpha": torch.tensor(2.0),
            }
    return tensors


@pytest.mark.parametrize("dotted", [False, True])
def test_flux_in_original_names_as_diffusers_reads_it(dotted, tmp_path):
    pipe = build("flux")
    plain = drawn(pipe)
    save_file(bfl(BFL, dotted), tmp_path / "l.safetensors")
    other = build("flux")
    # diffusers reads kohya's layout; BFL's it takes without an error and without an effect.
    other.load_lora_weights(bfl(BFL, False))
    expected = drawn(other)
    assert (expected - plain).abs().max() > 0.01
    torch.testing.assert_close(adapted(pipe, tmp_path / "l.safetensors"), expected, rtol=1e-4, atol=1e-4)


# {family: {module in the file: size}}, as ai-toolkit and ComfyUI name them
RECENT_FILES = {
    "z-image": {"layers.0.attention.to_q": (32, 32), "layers.0.feed_forward.w2": (32, 85)},
    "krea2": {"blocks.0.attn.wq": (32, 32), "blocks.0.attn.gate": (32, 32), "blocks.0.mlp.down": (32, 32)},
    "qwen-image": {
        "transformer_blocks.0.attn.add_k_proj": (32, 32),
        "transformer_blocks.0.img_mlp.net.2": (32, 128),
    },
    "flux2-klein": {
        "double_blocks.0.img_attn.qkv": (96, 32),
        "double_blocks.0.txt_mlp.0": (192, 32),
        "single_blocks.0.linear1": (288, 32),
    },
}


@pytest.mark.parametrize("family", RECENT_FILES)
def test_recent_families_as_diffusers_reads_them(family, tmp_path):
    def picture(pipe):
        call = CallArguments(pipe)
        arguments = call.of(
            ["a red cat"],
            [torch.Generator().manual_seed(3)],
            steps=2,
            size=(16, 16),
            guidance=None if family == "qwen-image" else 0.0,
            true_cfg=1.0 if call.true_cfg else None,
            negative="",
            length=60,
        )
        return invoke(pipe, arguments)

    def made():
        torch.manual_seed(0)
        pipe = RECENT[family]()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    tensors = {}
    for module, size in RECENT_FILES[family].items():
        down, up = matrices(*size)
        tensors |= {
            f"diffusion_model.{module}.lora_A.weight": down,
            f"diffusion_model.{module}.lora_B.weight": up,
        }
    save_file(tensors, tmp_path / "l.safetensors")
    pipe, other = made(), made()
    plain = picture(pipe)
    apply_loras([(tmp_path / "l.safetensors", 0.5)], pipe, "transformer")
    other.load_lora_weights(dict(tensors), adapter_name="one")
    other.set_adapters(["one"], [0.5])
    expected = picture(other)
    assert (expected - plain).abs().max() > 0.01
    torch.testing.assert_close(picture(pipe), expected, rtol=1e-3, atol=1e-3)


def test_flux_joined_layers_of_any_width(tmp_path):
    """diffusers' converter splits a single block's first layer for one width only."""
    pipe = build("flux")
    down, up = matrices(96 + 128, 32)
    save_file(
        {
            "lora_unet_single_blocks_0_linear1.lora_down.weight": down,
            "lora_unet_single_blocks_0_linear1.lora_up.weight": up,
        },
        tmp_path / "l.safetensors",
    )
    names = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]
    parts = dict(zip(names, (up @ down).split([32, 32, 32, 128])))
    expected = merged(
        build("flux"), {f"single_transformer_blocks.0.{name}": part for name, part in parts.items()}
    )
    torch.testing.assert_close(adapted(pipe, tmp_path / "l.safetensors"), expected, rtol=1e-4, atol=1e-4)


def test_sdxl_of_kohya_with_convolutions_and_text_encoders(tmp_path):
    """Names of Stability's blocks, convolutions (LoCon) and both text encoders, as diffusers reads them."""
    pipe = build("sdxl")
    plain = drawn(pipe)
    tensors = {}

    def add(name, down, up):
        tensors.update(
            {
                f"{name}.lora_down.weight": down,
                f"{name}.lora_up.weight": up,
                f"{name}.alpha": torch.tensor(1.0),
            }
        )

    attention = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"
    add(attention, *matrices(16, 16))
    by_diffusers = dict(tensors)
    down, up = matrices(16, 16 * 9)
    add("lora_unet_middle_block_0_in_layers_2", down.reshape(2, 16, 3, 3), up[:, :, None, None])
    first, second = matrices(16, 16)
    for encoder in ("lora_te1", "lora_te2"):
        add(f"{encoder}_text_model_encoder_layers_0_self_attn_q_proj", first.clone(), second.clone())
    save_file(tensors, tmp_path / "l.safetensors")
    apply_loras([(tmp_path / "l.safetensors", 1.0)], pipe, "unet")
    other = build("sdxl")
    other.load_lora_weights(by_diffusers)
    with torch.no_grad():
        other.unet.mid_block.resnets[0].conv1.weight += 0.5 * (up @ down).reshape(16, 16, 3, 3)
        for encoder in (other.text_encoder, other.text_encoder_2):
            layers = getattr(encoder, "text_model", encoder).encoder.layers
            layers[0].self_attn.q_proj.weight += 0.5 * second @ first
    expected = drawn(other)
    assert (expected - plain).abs().max() > 0.01
    torch.testing.assert_close(drawn(pipe), expected, rtol=1e-4, atol=1e-4)


# Other methods -------------------------------------------------------------------------------------------


def peft_deltas(pipe, config, seed=1):
    """A random adapter of peft's on a pipeline's denoiser: (its state, the adapted model)."""
    from peft import get_peft_model, get_peft_model_state_dict

    torch.manual_seed(seed)
    model = get_peft_model(denoiser_of(pipe), config)
    for name, weight in model.named_parameters():
        if weight.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(weight, std=0.2)
        elif weight.requires_grad:
            weight.data *= 1.3
    return get_peft_model_state_dict(model), model


@pytest.mark.parametrize("whole", [False, True])
def test_lokr_is_exact(whole, tmp_path):
    from peft import LoKrConfig

    pipe = build("flux")
    targets = r".*transformer_blocks\.0\.(attn\.to_[qk]|ff\.net\.2)"
    rank = 100 if whole else 2
    # Whole factors are not scaled by alpha in LyCORIS' files; in peft, with alpha = r, they are not either.
    config = LoKrConfig(
        r=rank, alpha=rank if whole else 1, target_modules=targets, decompose_both=False, decompose_factor=4
    )
    state, _ = peft_deltas(pipe, config)
    expected = drawn(pipe)
    tensors = {}
    for key, value in state.items():
        module, _, part = key.removeprefix("base_model.model.").rpartition(".")
        tensors[f"diffusion_model.{module}.{part}"] = value.contiguous()
        if not whole:
            tensors[f"diffusion_model.{module}.alpha"] = torch.tensor(1.0)
    assert any("lokr_w2_a" in key for key in tensors) != whole
    save_file(tensors, tmp_path / "l.safetensors")
    read = adapted(build("flux"), tmp_path / "l.safetensors")
    assert (expected - drawn(build("flux"))).abs().max() > 0.01
    torch.testing.assert_close(read, expected, rtol=1e-3, atol=1e-3)


def test_loha_is_exact(tmp_path):
    from peft import LoHaConfig

    pipe = build("sd1")
    state, _ = peft_deltas(pipe, LoHaConfig(r=3, alpha=2, target_modules=r".*attn1\.(to_q|to_v)"))
    expected = drawn(pipe)
    tensors = {}
    for key, value in state.items():
        module, _, part = key.removeprefix("base_model.model.").rpartition(".")
        flat = "lora_unet_" + module.replace(".", "_")
        tensors |= {f"{flat}.{part}": value.contiguous(), f"{flat}.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "l.safetensors")
    assert (expected - drawn(build("sd1"))).abs().max() > 0.01
    torch.testing.assert_close(
        adapted(build("sd1"), tmp_path / "l.safetensors"), expected, rtol=1e-3, atol=1e-3
    )


def test_dora_is_that_of_peft(tmp_path):
    from peft import LoraConfig

    pipe = build("flux")
    state, _ = peft_deltas(
        pipe, LoraConfig(r=2, lora_alpha=2, use_dora=True, target_modules=r".*attn\.to_[qk]")
    )
    expected = drawn(pipe)
    assert any("lora_magnitude_vector" in key for key in state)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "l.safetensors")
    assert (expected - drawn(build("flux"))).abs().max() > 0.01
    torch.testing.assert_close(
        adapted(build("flux"), tmp_path / "l.safetensors"), expected, rtol=1e-3, atol=1e-3
    )


def test_dora_on_joined_layers_is_split_with_them(tmp_path):
    pipe = build("flux")
    down, up = matrices(96, 32)
    lengths = torch.rand(96, 1) + 0.5
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.dora_scale": lengths},
        tmp_path / "l.safetensors",
    )
    block, deltas = "transformer_blocks.0.attn", {}
    for part, delta, length in zip("qkv", (up @ down).split(32), lengths.split(32)):
        weight = denoiser_of(pipe).get_submodule(f"{block}.to_{part}").weight.detach()
        changed = weight + delta
        deltas[f"{block}.to_{part}"] = changed * length / changed.norm(dim=1, keepdim=True) - weight
    expected = merged(build("flux"), deltas)
    torch.testing.assert_close(adapted(pipe, tmp_path / "l.safetensors"), expected, rtol=1e-4, atol=1e-4)


# Several, and what is refused ----------------------------------------------------------------------------


def one_lora(folder, name, seed):
    down, up = matrices(32, 32, seed=seed)
    key = "transformer.transformer_blocks.0.attn.to_q"
    save_file({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, folder / name)
    return folder / name, up @ down


def test_several_with_weights(folders, tmp_path):
    first, one = one_lora(tmp_path, "a.safetensors", 1)
    second, other = one_lora(tmp_path, "b.safetensors", 2)
    expected = merged(build("flux"), {"transformer_blocks.0.attn.to_q": 0.8 * one - 0.5 * other})
    pipe = build("flux")
    apply_loras([(first, 0.8), (second, -0.5)], pipe, "transformer")
    torch.testing.assert_close(drawn(pipe), expected, rtol=1e-4, atol=1e-4)
    settings = {"steps": 2, "size": 16, "device": "cpu", **SETTINGS["flux"]}
    pictures, marks = [], []
    for lora in ([], [first], [f"{first}:0.8"], [f"{first}:0.8", f"{second}:-0.5"]):
        renderer = DiffusersRenderer(folders("flux"), lora=lora, **settings)
        pictures.append(renderer.render([Job("a red cat", 3)]).images[0])
        marks.append(renderer.fingerprint)
    assert len(set(marks)) == 4
    for i, picture in enumerate(pictures):
        assert all((picture - other).abs().max() > 0.003 for other in pictures[:i])


def test_beside_weights_of_gguf(tmp_path):
    """Quantised weights stay as they are; the LoRA is computed beside them, in float32 or bfloat16."""
    from diffusers import GGUFQuantizationConfig

    from .test_single_files import write_gguf

    pytest.importorskip("gguf")
    pipe = build("flux")
    file, delta = one_lora(tmp_path, "a.safetensors", 1)
    write_gguf(tmp_path / "t.gguf", pipe.transformer.state_dict(), "Q8_0")
    pipe.transformer.save_config(tmp_path)
    made = type(pipe.transformer).from_single_file(
        str(tmp_path / "t.gguf"),
        config=str(tmp_path),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    layer = made.get_submodule("transformer_blocks.0.attn.to_q")
    given = torch.randn(3, 32)
    before = layer(given)
    pipe.transformer = made
    apply_loras([(file, 0.5)], pipe, "transformer")
    torch.testing.assert_close(layer(given) - before, 0.5 * given @ delta.T, rtol=1e-3, atol=1e-3)


def test_what_is_not_understood_is_refused_by_name(tmp_path):
    pipe = build("flux")
    before = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    good, _ = one_lora(tmp_path, "good.safetensors", 1)
    path = tmp_path / "l.safetensors"
    cases = [
        (
            {
                "transformer.blocks.9.to_q.lora_A.weight": torch.ones(2, 2),
                "transformer.blocks.9.to_q.lora_B.weight": torch.ones(2, 2),
            },
            CheckpointError,
            "no LoRA of this Flux.*blocks.9.to_q",
        ),
        (
            {
                "lora_te3_encoder_block_9.lora_down.weight": torch.ones(2, 2),
                "lora_te3_encoder_block_9.lora_up.weight": torch.ones(2, 2),
            },
            CheckpointError,
            "no module for 'lora_te3_encoder",
        ),
        ({"transformer.x_embedder.diff": torch.ones(2)}, Unsupported, "'transformer.x_embedder.diff'"),
        ({"emb_params": torch.ones(2)}, Unsupported, "'emb_params'"),
    ]
    for tensors, error, message in cases:
        save_file(tensors, path)
        with pytest.raises(error, match=message) as raised:
            apply_loras([(good, 1.0), (path, 1.0)], pipe, "transformer")
        assert "\n" not in str(raised.value)
    assert all(torch.equal(value, before[key]) for key, value in pipe.transformer.state_dict().items())
    (tmp_path / "l.pt").write_bytes(b"x")
    with pytest.raises(BadInput, match="is a pickle"):
        apply_loras([(tmp_path / "l.pt", 1.0)], pipe, "transformer")
