"""Single files in their original layouts: the same pictures as from diffusers' folders, without a network."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprise.backend.core.errors import BadInput, CheckpointError, Unsupported
from reprise.backend.core.types import Job
from reprise.backend.renderers.diffusers.comfyui_folders import ComfyuiFolders
from reprise.backend.renderers.diffusers.devices import models_of
from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer
from reprise.backend.renderers.diffusers.single_files import Rest, SingleFile

from . import by_the_book
from . import original_layouts as original
from .drawing import drawn

pytestmark = pytest.mark.usefixtures("offline")


def same_weights(pipe, other):
    for name, part in models_of(other).items():
        read = getattr(pipe, name).state_dict()
        assert read.keys() == part.state_dict().keys()
        assert all(torch.equal(read[key], value) for key, value in part.state_dict().items()), name


@pytest.fixture(scope="module", params=["sd1", "sdxl", "flux"])
def checkpoint(request, pipelines, tmp_path_factory):
    """(family, all-in-one file)"""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp(request.param) / "model.safetensors"
    save_file(original.checkpoint(pipelines(request.param), request.param), path)
    return request.param, path


def test_a_checkpoint_draws_what_its_folder_draws(checkpoint, folders, pipelines):
    family, path = checkpoint
    opened = SingleFile(path, Rest(base=folders(family))).load(torch.float32)
    assert set(opened.files.values()) == {path}
    same_weights(opened.pipeline, pipelines(family))
    assert torch.equal(drawn(opened.pipeline), drawn(pipelines(family)))


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """family -> (pipeline, all-in-one file)"""
    made = {}

    def get(family):
        if family not in made:
            pipe = by_the_book.build(family)
            path = tmp_path_factory.mktemp(family) / "model.safetensors"
            save_file(original.checkpoint(pipe, family), path)
            made[family] = pipe, path
        return made[family]

    return get


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_configs_are_read_off_the_weights(family, book):
    """No base, no ComfyUI, no network: sizes, scheduler and tokenizers are known."""
    pipe, path = book(family)
    opened = SingleFile(path).load(torch.float32).pipeline
    same_weights(opened, pipe)
    text = ["a red cat, and a blue dog", ""]
    for name in ("tokenizer", "tokenizer_2"):
        if (expected := getattr(pipe, name, None)) is not None:
            read = getattr(opened, name)
            arguments = {"padding": "max_length", "max_length": 77}
            assert read(text, **arguments).input_ids == expected(text, **arguments).input_ids
    assert dict(opened.scheduler.config) == dict(pipe.scheduler.config)
    assert torch.equal(drawn(opened), drawn(pipe))


@pytest.fixture(scope="module")
def comfyui(book, tmp_path_factory):
    """A ComfyUI's folders with the files of a FLUX, and the pipeline: (root, pipe)."""
    pipe, _ = book("flux")
    root = tmp_path_factory.mktemp("comfyui")
    (root / "folder_paths.py").write_text("")
    models = root / "models"
    for name in ("diffusion_models", "text_encoders", "vae", "checkpoints"):
        (models / name).mkdir(parents=True)
    save_file(
        original.prefixed("", original.flux(pipe.transformer.state_dict())),
        models / "diffusion_models/flux1-dev.safetensors",
    )
    save_file(
        original.prefixed("", original.clip(pipe.text_encoder.state_dict())),
        models / "text_encoders/clip_l.safetensors",
    )
    save_file(original.t5(pipe.text_encoder_2.state_dict()), models / "text_encoders/t5xxl_fp16.safetensors")
    save_file(original.prefixed("", original.vae(pipe.vae.state_dict(), 2)), models / "vae/ae.safetensors")
    pipe.tokenizer_2.save_pretrained(root / "comfy/text_encoders/t5_tokenizer")
    return root, pipe


def test_the_parts_are_found_as_comfyui_has_them(comfyui):
    root, pipe = comfyui
    opened = SingleFile(
        root / "models/diffusion_models/flux1-dev.safetensors", Rest(comfyui=ComfyuiFolders(root))
    ).load(torch.float32)
    assert {name: path.name for name, path in opened.files.items()} == {
        "text_encoder": "clip_l.safetensors",
        "text_encoder_2": "t5xxl_fp16.safetensors",
        "transformer": "flux1-dev.safetensors",
        "vae": "ae.safetensors",
    }
    same_weights(opened.pipeline, pipe)
    assert torch.equal(drawn(opened.pipeline), drawn(pipe))


def test_the_renderer_takes_a_name_that_comfyui_lists(comfyui):
    root, pipe = comfyui
    settings = {"steps": 2, "size": 16, "max_sequence_length": 20, "device": "cpu"}
    renderer = DiffusersRenderer("flux1-dev.safetensors", comfyui=root, **settings)
    plain = DiffusersRenderer(pipe, **settings)
    one, other = (each.render([Job("a red cat", 3)]).images[0] for each in (renderer, plain))
    assert torch.equal(one, other) and one.std() > 0.01


def test_what_is_missing_is_named(comfyui, tmp_path):
    root, _ = comfyui
    file = root / "models/diffusion_models/flux1-dev.safetensors"
    with pytest.raises(
        BadInput, match="FLUX denoiser.*vae: .*text_encoder: .*clip, width 64.*text_encoder_2"
    ) as error:
        SingleFile(file).load(torch.float32)
    assert "\n" not in str(error.value) and "--comfyui DIR" in str(error.value)
    with pytest.raises(BadInput, match="no ComfyUI is there"):
        ComfyuiFolders(tmp_path)
    vae = root / "models/vae/ae.safetensors"
    with pytest.raises(Unsupported, match="is a VAE, not a denoiser"):
        SingleFile(vae)
    with pytest.raises(BadInput, match="--part text_encoder=.*expected a text encoder"):
        SingleFile(file, Rest(files={"text_encoder": vae}, comfyui=ComfyuiFolders(root))).load(torch.float32)


def test_several_files_that_fit_are_a_question(comfyui, tmp_path):
    root, _ = comfyui
    copy = tmp_path / "comfyui"
    shutil.copytree(root, copy)
    encoders = copy / "models/text_encoders"
    shutil.copy(encoders / "clip_l.safetensors", encoders / "ViT-L-better.safetensors")
    rest = Rest(comfyui=ComfyuiFolders(copy))
    file = copy / "models/diffusion_models/flux1-dev.safetensors"
    with pytest.raises(BadInput, match="2 files.*clip_l.safetensors.*choose by --part text_encoder=FILE"):
        SingleFile(file, rest).load(torch.float32)
    chosen = Rest({"text_encoder": encoders / "ViT-L-better.safetensors"}, comfyui=rest.comfyui)
    assert (
        SingleFile(file, chosen).load(torch.float32).files["text_encoder"].name == "ViT-L-better.safetensors"
    )
    # The same encoder in two precisions is no question: the larger one is taken.
    (encoders / "ViT-L-better.safetensors").unlink()
    small = {
        key: value.to(torch.float8_e4m3fn)
        for key, value in load_file(encoders / "t5xxl_fp16.safetensors").items()
    }
    save_file(small, encoders / "t5xxl_fp8_e4m3fn.safetensors")
    assert SingleFile(file, rest).load(torch.float32).files["text_encoder_2"].name == "t5xxl_fp16.safetensors"


def test_extra_model_paths(comfyui, tmp_path):
    root, _ = comfyui
    copy, disk = tmp_path / "comfyui", tmp_path / "disk"
    shutil.copytree(root, copy)
    shutil.move(copy / "models/text_encoders", disk / "models/clip")
    shutil.move(copy / "models/diffusion_models", disk / "models/unet")
    (copy / "extra_model_paths.yaml").write_text(
        f"a1111:\n  base_path: {disk}\n  is_default: true\n  clip: models/clip\n"
        "  unet: |\n    models/unet\n    models/more\n  embeddings: embeddings\n"
    )
    folders = ComfyuiFolders(copy)
    file = folders.named("flux1-dev.safetensors", ["diffusion_models"])
    assert file == disk / "models/unet/flux1-dev.safetensors"
    assert (
        SingleFile(file, Rest(comfyui=folders)).load(torch.float32).files["text_encoder"].parent
        == disk / "models/clip"
    )
    (copy / "extra_model_paths.yaml").write_text("a: [")
    with pytest.raises(BadInput, match="extra_model_paths.yaml cannot be read"):
        ComfyuiFolders(copy)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pth"])
def test_pickles_are_never_opened(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(BadInput, match="is a pickle.*safetensors"):
        SingleFile(path)


def test_damaged_and_foreign_files(book, tmp_path):
    pipe, path = book("sd1")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        SingleFile(cut)
    with pytest.raises(BadInput, match="there is no file"):
        SingleFile(tmp_path / "none.safetensors")
    tensors = load_file(path)
    lost = dict(tensors)
    del lost["model.diffusion_model.out.2.bias"]
    save_file(lost, tmp_path / "lost.safetensors")
    with pytest.raises(CheckpointError, match="lacks conv_out.bias"):
        SingleFile(tmp_path / "lost.safetensors").load(torch.float32)
    save_file({**tensors, "model.diffusion_model.out.2.extra": torch.ones(1)}, tmp_path / "lost.safetensors")
    read = SingleFile(tmp_path / "lost.safetensors").load(torch.float32).pipeline
    same_weights(read, pipe)  # diffusers' converter of UNets passes over what it does not know
    save_file({"a.lora_down.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(Unsupported, match="is a LoRA.*--lora"):
        SingleFile(tmp_path / "lora.safetensors")
    save_file({"some.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(Unsupported, match="no family that is known.*FLUX.*some.weight.*comfyui:"):
        SingleFile(tmp_path / "other.safetensors")


def write_gguf(path, state, kind):
    """As ComfyUI-GGUF's converter does: matrices quantised, the rest in float32."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, arch="flux")
    for key, value in state.items():
        data = value.float().contiguous().numpy()
        form = gguf.GGMLQuantizationType[kind if value.ndim == 2 and value.shape[1] % 32 == 0 else "F32"]
        writer.add_tensor(key, gguf.quants.quantize(data, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_gguf_is_drawn_as_its_dequantised_weights(kind, comfyui, tmp_path):
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

    root, pipe = comfyui
    write_gguf(tmp_path / f"flux-{kind}.gguf", original.flux(pipe.transformer.state_dict()), kind)
    opened = (
        SingleFile(tmp_path / f"flux-{kind}.gguf", Rest(comfyui=ComfyuiFolders(root)))
        .load(torch.float32)
        .pipeline
    )
    weights = dict(opened.transformer.named_parameters())
    kept = [key for key, value in weights.items() if isinstance(value, GGUFParameter)]
    assert len(kept) > 20, "the matrices stay quantised in memory"
    plain = by_the_book.build("flux").transformer
    state = {
        key: dequantize_gguf_tensor(value).float().reshape(plain.state_dict()[key].shape)
        for key, value in weights.items()
    }
    plain.load_state_dict(state)
    whole = type(pipe)(**{**pipe.components, "transformer": plain})
    torch.testing.assert_close(drawn(opened), drawn(whole), rtol=1e-4, atol=1e-4)
    far = (drawn(opened) - drawn(pipe)).abs().mean()
    assert 0 < far < {"Q8_0": 0.1, "Q4_0": 1.0}[kind], far
    settings = {"steps": 2, "size": 16, "max_sequence_length": 20, "device": "cpu"}
    renderer = DiffusersRenderer(tmp_path / f"flux-{kind}.gguf", comfyui=root, **settings)
    assert renderer.render([Job("a red cat", 3)]).images[0].std() > 0.01


def test_gguf_without_its_package_says_so(comfyui, tmp_path, monkeypatch):
    import sys

    root, pipe = comfyui
    (tmp_path / "flux.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(Unsupported, match="needs the package gguf"):
        SingleFile(tmp_path / "flux.gguf")


def test_scaled_float8_is_multiplied_out(comfyui, tmp_path):
    """ComfyUI's *_scaled files, in the old and in the new names: read as they are they would draw noise."""
    root, pipe = comfyui
    state = original.prefixed("", original.flux(pipe.transformer.state_dict()))
    rest = Rest(comfyui=ComfyuiFolders(root))
    for scale_name in ("scale_weight", "weight_scale"):
        scaled = {}
        for key, value in state.items():
            if value.ndim == 2:
                scale = value.abs().max() / 448
                scaled[key] = (value / scale).to(torch.float8_e4m3fn)
                scaled[f"{key.removesuffix('.weight')}.{scale_name}"] = scale.float()
            else:
                scaled[key] = value
        if scale_name == "scale_weight":
            scaled["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        save_file(scaled, tmp_path / "flux.safetensors")
        opened = SingleFile(tmp_path / "flux.safetensors", rest).load(torch.float32).pipeline
        read = opened.transformer.state_dict()
        for key, value in pipe.transformer.state_dict().items():
            assert (read[key] - value).abs().max() <= 0.07 * value.abs().max(), key
    save_file(
        scaled,
        tmp_path / "flux.safetensors",
        {"_quantization_metadata": '{"layers": {"img_in": {"format": "nvfp4"}}}'},
    )
    with pytest.raises(Unsupported, match="quantised as nvfp4, which only ComfyUI reads"):
        SingleFile(tmp_path / "flux.safetensors", rest).load(torch.float32)
