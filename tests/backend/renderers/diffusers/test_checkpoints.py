"""Loading from one folder, and refusing what is not a whole, safe pipeline in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from reprise.backend.core.errors import BadInput, CheckpointError, Unsupported
from reprise.backend.core.model_files import folder_fingerprint
from reprise.backend.core.types import Job
from reprise.backend.renderers.diffusers.call import decoder
from reprise.backend.renderers.diffusers.checkpoints import read_index
from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer

from ..conftest import FAMILIES, SETTINGS

JOBS = [Job("a red cat", 1), Job("two blue dogs", 2)]


@pytest.fixture
def damaged(folders, tmp_path):
    """(family) -> a copy of its folder to damage."""

    def make(family: str = "sd1") -> Path:
        return Path(shutil.copytree(folders(family), tmp_path / family))

    return make


def load(folder, family: str = "sd1", **settings):
    return DiffusersRenderer(folder, **{"steps": 2, "size": 16, **SETTINGS[family], **settings})


def refused(folder, error=CheckpointError, **settings) -> str:
    with pytest.raises(error) as caught:
        load(folder, **settings)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 and caught.value.exit_code == 2
    return message


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_loads_from_one_folder(family, folders, renderer, capfd):
    loaded = load(folders(family), family)
    assert capfd.readouterr().out == ""
    memory = renderer(family, steps=2)
    for one, other in zip(loaded.render(JOBS).images, memory.render(JOBS).images, strict=True):
        assert torch.equal(one, other)
    assert loaded.fingerprint == load(str(folders(family)), family).fingerprint
    assert loaded.fingerprint != load(folders(family), family, steps=3).fingerprint
    vae = decoder(loaded.pipeline)
    assert vae.dtype == torch.float32 and not vae.training


def test_bfloat16_works_on_a_cpu(folders):
    loaded = load(folders("flux"), "flux", dtype="bfloat16")
    assert loaded.pipeline.transformer.dtype == torch.bfloat16
    assert loaded.render(JOBS).images[1].dtype == torch.float32


def test_half_precision_files_load(damaged):
    folder = damaged()
    for weights in folder.rglob("*.safetensors"):
        weights.rename(weights.with_name(weights.name.replace(".safetensors", ".fp16.safetensors")))
    assert load(folder).render(JOBS).images[0] is not None


def test_a_missing_pipeline_is_refused(tmp_path):
    assert "found nothing" in refused(tmp_path / "absent")
    assert "found nothing" in refused("./models/absent/deeper")
    (tmp_path / "one.safetensors").write_bytes(b"x")
    assert "cannot be read as safetensors" in refused(tmp_path / "one.safetensors")
    (tmp_path / "empty").mkdir()
    assert "no model_index.json" in refused(str(tmp_path / "empty"))
    for text in ("{", "[]", "{}", '"x"'):
        (tmp_path / "empty" / "model_index.json").write_text(text)
        assert "damaged" in refused(tmp_path / "empty")
    with pytest.raises(BadInput, match="got int"):
        DiffusersRenderer(7)


def test_an_id_that_cannot_be_fetched_is_one_line(monkeypatch):
    import diffusers

    def offline(*_, **__):
        raise OSError("We couldn't connect to\n'https://huggingface.co'")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", offline)
    message = refused("nobody/no-such-model")
    assert "neither a folder here nor a Hugging Face id" in message and "couldn't connect" in message


def test_an_id_of_another_kind_is_refused_before_the_download(monkeypatch):
    import diffusers

    monkeypatch.setattr(
        diffusers.DiffusionPipeline,
        "load_config",
        lambda *_, **__: {"_class_name": "WanImageToVideoPipeline"},
    )
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda *_, **__: pytest.fail("downloaded"))
    assert "WanImageToVideoPipeline is no text-to-image" in refused("somebody/video", Unsupported)


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionInpaintPipeline",
        "FluxImg2ImgPipeline",
        "AmusedImg2ImgPipeline",
        "StableVideoDiffusionPipeline",
        "NoSuchPipeline",
    ],
)
def test_other_pipelines_are_refused_by_name(name, damaged):
    folder = damaged()
    edit(folder / "model_index.json", _class_name=name)
    message = refused(folder, Unsupported)
    assert name in message and "--renderer comfyui:WORKFLOW.json@URL" in message
    assert ("has no pipeline" if name == "NoSuchPipeline" else "is no text-to-image pipeline") in message


def test_an_object_of_another_class_is_refused(pipelines):
    from diffusers import StableDiffusionImg2ImgPipeline

    parts = pipelines("sd1").components
    other = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(Unsupported, match="StableDiffusionImg2ImgPipeline is no text-to-image"):
        DiffusersRenderer(other)


def test_code_of_a_checkpoint_is_never_run(damaged):
    folder = damaged()
    (folder / "pipeline.py").write_text("raise SystemExit('ran')")
    edit(folder / "model_index.json", _class_name=["pipeline", "Mine"])
    assert "never run" in refused(folder, Unsupported)
    edit(folder / "model_index.json", _class_name="StableDiffusionPipeline", unet=["unet", "Mine"])
    (folder / "unet" / "unet.py").write_text("raise SystemExit('ran')")
    assert "never run" in refused(folder, Unsupported)


def test_pickled_weights_are_not_read(damaged):
    folder = damaged()
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    assert "only pickled weights; only safetensors" in refused(folder)
    weights.with_suffix(".bin").unlink()
    assert "no weights" in refused(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_weights_are_refused(part, damaged):
    folder = damaged()
    weights = next((folder / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"weights in {folder / part} cannot be read" in refused(folder)
    weights.write_bytes(b"")
    assert "cannot be read" in refused(folder)
    weights.write_bytes(b"\xff" * 4096)
    assert "cannot be read" in refused(folder)


@pytest.mark.parametrize(
    "part, change",
    [(part, change) for part in ("unet", "text_encoder") for change in ("missing", "shape", "nan")],
)
def test_tampered_weights_are_refused(part, change, damaged):
    from safetensors.torch import load_file, save_file

    folder = damaged()
    path = next((folder / part).glob("*.safetensors"))
    weights = load_file(path)
    key = next(name for name in sorted(weights) if weights[name].ndim == 2)
    if change == "missing":
        del weights[key]
    elif change == "shape":
        weights[key] = weights[key][:, :-1].contiguous()
    else:
        weights[key][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    message = refused(folder)
    assert str(folder / part) in message
    assert {"missing": "missing", "shape": "", "nan": "not finite"}[change] in message


def test_damaged_configs_are_refused(damaged):
    folder = damaged()
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    assert "cannot be loaded" in refused(folder)
    (folder / "unet" / "config.json").write_text("{")
    assert "cannot be read" in refused(folder)
    for name in ("tokenizer.json", "vocab.json"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    assert "lacks its vocabulary" in refused(folder)
    shutil.rmtree(folder / "tokenizer")
    assert "lacks the folder of its tokenizer" in refused(folder)


def test_parts_of_a_newer_library_are_refused(damaged):
    folder = damaged()
    edit(folder / "model_index.json", unet=["diffusers", "NoSuchModel"])
    assert "no class 'NoSuchModel'" in refused(folder)


def test_an_invalid_preview_decoder_is_refused(folders, tmp_path):
    message = refused(folders("sd1"), preview_decoder=tmp_path)
    assert "preview decoder" in message


def test_the_fingerprint_depends_on_the_folders_files(damaged):
    folder = damaged()
    before = folder_fingerprint(folder)
    (folder / "README.md").write_text("not a part of the pixels")
    assert folder_fingerprint(folder) == before
    weights = next((folder / "unet").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert folder_fingerprint(folder) != before


def test_the_index_of_a_good_folder_is_read(folders):
    assert read_index(folders("sdxl"))["_class_name"] == "StableDiffusionXLPipeline"


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"quant_method": "torchao"},
            "quantised by torchao, whose package is not installed: pip install torchao",
        ),
        ({"load_in_4bit": True}, "quantised by bitsandbytes, whose package is not installed"),
        ({"quant_method": "abacus"}, "quantised by abacus, which is not known here"),
    ],
)
def test_a_quantisation_that_cannot_be_read_is_named(settings, message, damaged, monkeypatch):
    from reprise.backend.renderers.diffusers import quantization

    monkeypatch.setattr(quantization, "is_installed", lambda module: False)
    folder = damaged("flux")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    said = refused(folder, Unsupported)
    assert message in said and "tampered" not in said


def test_quantised_tensors_are_not_searched_for_what_is_not_finite(tmp_path):
    """Those of torchao have no such operation."""
    from types import SimpleNamespace

    from reprise.backend.renderers.diffusers.checkpoints import _check_finite

    class Stored(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.isfinite:
                raise NotImplementedError("no such operation")
            return super().__torch_function__(func, types, args, kwargs)

    layer = torch.nn.Linear(2, 2)
    layer.weight = torch.nn.Parameter(torch.ones(2, 2).as_subclass(Stored), requires_grad=False)
    _check_finite(SimpleNamespace(components={"transformer": layer}), tmp_path)
    layer.bias.data[0] = torch.nan
    with pytest.raises(CheckpointError, match="bias is not finite"):
        _check_finite(SimpleNamespace(components={"transformer": layer}), tmp_path)
