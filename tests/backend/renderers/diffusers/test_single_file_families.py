"""Single files of each family that is recognised: the same pictures as from diffusers' folders."""

import pytest
import torch
from safetensors.torch import save_file

from reprise.backend.core.errors import BadInput, Unsupported
from reprise.backend.core.types import Job
from reprise.backend.lab.pipelines.known import KNOWN
from reprise.backend.lab.pipelines.recent import RECENT
from reprise.backend.renderers.diffusers.comfyui_folders import ComfyuiFolders
from reprise.backend.renderers.diffusers.devices import models_of
from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer
from reprise.backend.renderers.diffusers.single_files import Rest, SingleFile

from . import by_the_book as book
from . import original_layouts as original

pytestmark = pytest.mark.usefixtures("offline")

JOB = Job("a red cat, and a blue dog", 3)


def picture(model, **settings):
    settings = {"steps": 2, "size": 16, "chunk": 1, "device": "cpu", **settings}
    drawn = DiffusersRenderer(model, **settings).render([JOB]).images[0]
    assert drawn.std() > 0.01
    return drawn


def same_weights(pipe, other):
    """All but what no picture needs of a language model: its head, and its vision model."""

    def used(state):
        return {key: value for key, value in state.items() if "visual." not in key and "lm_head." not in key}

    for name, part in models_of(other).items():
        read, expected = used(getattr(pipe, name).state_dict()), used(part.state_dict())
        assert read.keys() == expected.keys()
        assert all(torch.equal(read[key], value) for key, value in expected.items()), name


DENOISERS = {
    "sana": original.sana,
    "sd3": original.sd3,
    "z-image": original.z_image,
    "qwen-image": dict,
    "krea2": original.krea2,
    "flux2-klein": original.flux2,
    "chroma": original.chroma,
}


@pytest.mark.parametrize(
    "family", ["sana", *(pytest.param(one, marks=pytest.mark.long) for one in list(DENOISERS)[1:])]
)
def test_a_denoiser_draws_with_the_rest_of_a_base(family, tmp_path):
    torch.manual_seed(0)
    pipe = (RECENT | KNOWN)[family]()
    pipe.save_pretrained(tmp_path / "base")
    file = tmp_path / "model.safetensors"
    save_file(original.prefixed("", DENOISERS[family](pipe.transformer.state_dict())), file)
    opened = SingleFile(file, Rest(base=tmp_path / "base")).load(torch.float32)
    assert opened.files["transformer"] == file
    same_weights(opened.pipeline, pipe)
    size = {"size": 32} if family == "sana" else {}
    assert torch.equal(picture(file, base=tmp_path / "base", **size), picture(tmp_path / "base", **size))


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory):
    """A ComfyUI's folders, with its tokenizers and no models."""
    root = tmp_path_factory.mktemp("comfyui")
    (root / "folder_paths.py").write_text("")
    for name in ("diffusion_models", "text_encoders", "vae", "checkpoints"):
        (root / "models" / name).mkdir(parents=True)
    book.t5_tokenizer().save_pretrained(root / "comfy/text_encoders/t5_tokenizer")
    book.qwen_tokenizer().save_pretrained(root / "comfy/text_encoders/qwen25_tokenizer")
    return root


def test_sd2_as_a_checkpoint(tmp_path):
    pipe = book.build("sd2")
    text = original.open_clip(pipe.text_encoder.state_dict())
    # The file has one layer more than is used.
    last = {key: torch.randn_like(value) for key, value in text.items() if ".resblocks.1." in key}
    text |= {key.replace(".resblocks.1.", ".resblocks.2."): value for key, value in last.items()}
    tensors = {
        **original.prefixed("model.diffusion_model.", original.unet(pipe.unet.state_dict(), 2)),
        **original.prefixed("first_stage_model.", original.vae(pipe.vae.state_dict(), 2)),
        **original.prefixed("cond_stage_model.model.", text),
    }
    save_file(tensors, tmp_path / "sd2.safetensors")
    opened = SingleFile(tmp_path / "sd2.safetensors").load(torch.float32).pipeline
    same_weights(opened, pipe)
    assert opened.scheduler.config.prediction_type == "epsilon" and opened.unet.config.sample_size == 64
    assert torch.equal(picture(tmp_path / "sd2.safetensors"), picture(pipe))
    # What tells 768-v apart.
    mark = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    file = SingleFile(tmp_path / "sd2.safetensors")
    file._read_prediction({mark.removeprefix(file.prefix): torch.tensor([-0.2, 0.2])})
    assert file.config["sample_size"] == 96
    assert file._scheduler().config.prediction_type == "v_prediction"


@pytest.mark.parametrize("dual", [False, True], ids=["3", "3.5"])
def test_sd3_as_a_checkpoint(dual, comfyui, tmp_path):
    pipe = book.build("sd35" if dual else "sd3")
    texts = {
        "clip_l": original.clip(pipe.text_encoder.state_dict()),
        "clip_g": original.clip(pipe.text_encoder_2.state_dict()),
        "t5xxl": original.t5(pipe.text_encoder_3.state_dict()),
    }
    tensors = {
        **original.prefixed("model.diffusion_model.", original.sd3(pipe.transformer.state_dict())),
        **original.prefixed("first_stage_model.", original.vae(pipe.vae.state_dict(), 2)),
    }
    for name, state in texts.items():
        tensors |= original.prefixed(f"text_encoders.{name}.transformer.", state)
    save_file(tensors, tmp_path / "sd3.safetensors")
    opened = SingleFile(tmp_path / "sd3.safetensors", Rest(comfyui=ComfyuiFolders(comfyui)))
    read = opened.load(torch.float32).pipeline
    same_weights(read, pipe)
    assert dict(read.scheduler.config) == dict(pipe.scheduler.config)
    settings = {"max_sequence_length": 20}
    expected = picture(pipe, **settings)
    assert torch.equal(picture(tmp_path / "sd3.safetensors", comfyui=comfyui, **settings), expected)


# family -> (its file, denoiser, [(file of a text encoder, its names)], file of its VAE, its names)
FILES = {
    "z-image": ("z_image_turbo_bf16", original.z_image, "qwen_3_4b", "ae", original.vae),
    "flux2-klein": ("flux-2-klein-4b", original.flux2, "qwen_3_4b", "flux2-vae", original.flux2_vae),
    "chroma": ("Chroma1-HD", original.chroma, "t5xxl_fp16", "ae", original.vae),
    "qwen-image": ("qwen_image_bf16", dict, "qwen_2.5_vl_7b", "qwen_image_vae", original.wan_vae),
    "krea2": ("krea2_turbo", original.krea2, "qwen3vl_4b_bf16", "qwen_image_vae", original.wan_vae),
}


@pytest.mark.parametrize("family", FILES)
def test_the_parts_of_a_comfyui_are_enough(family, comfyui, tmp_path):
    import shutil

    name, denoiser, text, vae, vae_names = FILES[family]
    pipe = book.build(family)
    root = tmp_path / "comfyui"
    shutil.copytree(comfyui, root)
    levels = () if vae_names is original.wan_vae else (len(pipe.vae.config.block_out_channels),)
    state = {
        "diffusion_models": (name, denoiser(pipe.transformer.state_dict())),
        "text_encoders": (text, original.text(pipe.text_encoder)),
        "vae": (vae, vae_names(pipe.vae.state_dict(), *levels)),
    }
    for folder, (file, tensors) in state.items():
        save_file(original.prefixed("", tensors), root / "models" / folder / f"{file}.safetensors")
    opened = SingleFile(
        root / f"models/diffusion_models/{name}.safetensors", Rest(comfyui=ComfyuiFolders(root))
    )
    read = opened.load(torch.float32).pipeline
    same_weights(read, pipe)
    assert dict(read.scheduler.config) == dict(pipe.scheduler.config)
    for option in ("is_distilled", "text_encoder_select_layers"):
        assert read.config.get(option) == pipe.config.get(option)
    settings = {"max_sequence_length": 40} if family == "chroma" else {"max_sequence_length": 64}
    if "turbo" in name:  # a file of this name is not guided, and a pipeline has no name
        settings["guidance"] = 0.0
    expected = picture(pipe, **settings)
    assert torch.equal(picture(f"{name}.safetensors", comfyui=root, **settings), expected)


def test_qwen3_is_spoken_to_as_it_was_trained(comfyui, tmp_path):
    """ComfyUI's tokenizer has another model's template, with a system message that no picture asks for."""
    pipe = book.build("z-image")
    save_file(original.z_image(pipe.transformer.state_dict()), tmp_path / "z.safetensors")
    file = SingleFile(tmp_path / "z.safetensors", Rest(comfyui=ComfyuiFolders(comfyui)))
    tokenizer = file._tokenizer(file.layout.text["text_encoder"])
    words = [{"role": "user", "content": "a cat"}]
    plain = "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n"
    options = {"tokenize": False, "add_generation_prompt": True}
    for thinks, expected in ((True, plain), (False, plain + "<think>\n\n</think>\n\n")):
        assert tokenizer.apply_chat_template(words, enable_thinking=thinks, **options) == expected


def test_what_only_a_base_knows_is_named(tmp_path):
    torch.manual_seed(0)
    for family, names, said in (
        ("sana", original.sana, "is SANA"),
        ("flux2-dev", original.flux2, "is FLUX.2 dev"),
    ):
        file = tmp_path / f"{family}.safetensors"
        if family == "sana":
            state = names(RECENT[family]().transformer.state_dict())
        else:
            from reprise.backend.lab.pipelines.recent import flux2_transformer

            state = names(flux2_transformer(48, guidance_embeds=True).state_dict())
        save_file(original.prefixed("", state), file)
        with pytest.raises(Unsupported, match=f"{said}: give its diffusers folder or hub name with --base"):
            SingleFile(file)


def test_a_vae_of_the_same_shape_is_not_guessed(comfyui, tmp_path):
    """FLUX's VAE fits SD3 in shape, and would give wrong colours."""
    import shutil

    root = tmp_path / "comfyui"
    shutil.copytree(comfyui, root)
    pipe = book.build("sd3")
    save_file(
        original.prefixed("", original.vae(pipe.vae.state_dict(), 2)), root / "models/vae/ae.safetensors"
    )
    save_file(original.sd3(pipe.transformer.state_dict()), tmp_path / "sd3.safetensors")
    with pytest.raises(BadInput, match="vae: a VAE .AutoencoderKL, 16 channels."):
        SingleFile(tmp_path / "sd3.safetensors", Rest(comfyui=ComfyuiFolders(root))).load(torch.float32)
