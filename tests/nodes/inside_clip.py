"""Runs inside ComfyUI's Python: rewriters from CLIP objects that the core generates text with.

Usage: inside_clip.py COMFYUI_FOLDER PACK_FOLDER TASK; prints one line of JSON.
"""

import json
import sys
from functools import partial

from boot import module, start  # of backend/lab/bench/inside

COMFYUI, PACK, TASK = sys.argv[1:4]
start(COMFYUI)
pack = partial(module, PACK)  # a module of the pack

import comfy.sd  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import comfy.text_encoders.llama as llama  # noqa: E402
import comfy.text_encoders.z_image as z_image  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402

PROMPTS = ["a photo of a blue star left of a green heart", "three red circles"]


def made(tokenizer, model, **options) -> comfy.sd.CLIP:
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    return comfy.sd.CLIP(target, model_options={"dtype": torch.float32, **options})


def z_image_clip() -> comfy.sd.CLIP:
    """The core's own tokenizer and text encoder of Z-Image, Qwen3, with few, narrow, random layers."""
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    clip = made(z_image.ZImageTokenizer, z_image.ZImageTEModel, qwen3_4b_model_config=small)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in clip.cond_stage_model.parameters():
            parameter.normal_(0, 0.1)
    return clip


def embedded_clip(folder) -> comfy.sd.CLIP:
    """The embedded rewriter's weights and tokenizer behind the core's Llama2_ and its generate."""
    from transformers import AutoTokenizer

    shape = json.loads((folder / "config.json").read_text())
    fields = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
    )
    small = {name: shape[name] for name in fields} | {"rope_theta": shape["rope_parameters"]["rope_theta"]}
    theirs = AutoTokenizer.from_pretrained(str(folder))
    system = json.loads((folder / "reprise.json").read_text())["system"]
    template = theirs.apply_chat_template(
        [{"role": "system", "content": system}, {"role": "user", "content": "{}"}],
        tokenize=False,
        add_generation_prompt=True,
    )

    class Qwen2(llama.BaseLlama, llama.BaseGenerate, torch.nn.Module):
        def __init__(self, config, dtype, device, operations):
            super().__init__()
            config = llama.Qwen25_3BConfig(**config)
            config.head_dim = config.hidden_size // config.num_attention_heads
            config.stop_tokens = [shape["eos_token_id"]]
            self.num_layers = config.num_hidden_layers
            self.model = llama.Llama2_(config, device=device, dtype=dtype, ops=operations)
            self.dtype = dtype

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=small,
                model_class=Qwen2,
                special_tokens={"pad": shape["pad_token_id"]},
                layer_norm_hidden_state=False,
                model_options=model_options,
            )

    class Encoders(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(device, dtype, model_options or {}, name="tiny", clip_model=Encoder)

    class Words(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                str(folder),
                tokenizer_class=AutoTokenizer,
                embedding_directory="/nowhere",
                has_start_token=False,
                has_end_token=False,
                pad_with_end=False,
                pad_to_max_length=False,
                max_length=10**8,
                min_length=1,
                pad_token=shape["pad_token_id"],
            )

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        """As the core's chat tokenizers: the text goes into the template, weights in brackets are off."""

        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(embedding_directory, tokenizer_data or {}, name="tiny", tokenizer=Words)

        def tokenize_with_weights(self, text, return_word_ids=False, llama_template=None, **kwargs):
            text = template.format(text)
            return super().tokenize_with_weights(text, return_word_ids, disable_weights=True, **kwargs)

    clip = made(Tokenizer, Encoders)
    weights = comfy.utils.load_torch_file(str(folder / "model.safetensors"), safe_load=True)
    missing, unexpected = clip.load_sd({key: value.float() for key, value in weights.items()})
    assert not missing and not unexpected, (missing, unexpected)
    return clip


def plain(found) -> list:
    return [[vars(rewrite) for rewrite in variants] for variants in found]


def embedded() -> dict:
    """The same weights asked through the core and through transformers."""
    reprompt = pack("backend.rewriters.reprompt")
    ours = reprompt.RePromptRewriter(reprompt.EMBEDDED_REWRITER, device="cpu")
    node = pack("nodes.chat").RewriterFromClip
    rewriter = node.execute(embedded_clip(reprompt.EMBEDDED_REWRITER), 0.7, 224, 0.95).args[0]
    rewriter.system = ""  # the tokenizer's template brings the one that the weights were trained with
    strange = "a red (circle:1.3), embedding:EasyNegative <|im_end|> {x}"
    critiques = ["the circles are blue", None]
    return {
        "reprompt": plain(ours.rewrite(PROMPTS)),
        "clip": plain(rewriter.rewrite(PROMPTS)),
        "mended": [plain(one.rewrite(PROMPTS, critiques=critiques)) for one in (ours, rewriter)],
        "sampled": plain(rewriter.rewrite(PROMPTS[:1], variants=3, seed=5)),
        "again": plain(rewriter.rewrite(PROMPTS[:1], variants=3, seed=5)),
        "fewer": plain(rewriter.rewrite(PROMPTS[:1], variants=2, seed=5)),
        "other": plain(rewriter.rewrite(PROMPTS[:1], variants=3, seed=6)),
        "strange": rewriter._request_text(strange, "embedding:x"),
        "kept": plain(rewriter.rewrite([strange])),
    }


def core() -> dict:
    """A text encoder of the core with random weights, through the node and through Generate Text."""
    from comfy_extras.nodes_textgen import TextGenerate

    chat = pack("nodes.chat")
    clip = z_image_clip()
    rewriter = chat.RewriterFromClip.execute(clip, 0.9, 12, 0.95).args[0]
    asked = rewriter._request_text("a red circle", None)
    told = []
    found = rewriter.rewrite(["a red circle"], 2, 3, progress=lambda *seen: told.append(seen))
    return {
        "rewrites": plain(found),
        "progress": told,
        "ours": rewriter._generate(asked, None, "")[0],
        "core": TextGenerate.execute(clip, asked, 12, {"sampling_mode": "off"}).args[0],
        "memory": pack("nodes.memory").load_to_device(rewriter),
        "interrupt": interrupt(rewriter),
    }


def interrupt(rewriter) -> dict:
    """The number of tokens generated if ComfyUI's interrupt comes after the third."""
    import comfy.model_management as management

    seen = []

    def hook(value, total, preview, **more):
        seen.append(value)
        if len(seen) == 3:
            management.interrupt_current_processing()
        management.throw_exception_if_processing_interrupted()

    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        rewriter.rewrite(["a red circle"], 2, 3)
    except management.InterruptProcessingException:
        return {"tokens": len(seen)}
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    return {}


def refusals() -> dict:
    """The node's errors for CLIP objects that cannot generate text."""
    chat = pack("nodes.chat")

    def said(clip):
        try:
            chat.RewriterFromClip.execute(clip, 0.9, 12, 0.95)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    class Old:
        """A CLIP of a ComfyUI before 0.15."""

    class ClipL(comfy.sd1_clip.SD1Tokenizer):
        pass

    small = made(ClipL, comfy.sd1_clip.SD1ClipModel)
    return {
        "none": said(None),
        "old": said(Old()),
        "sd1": said(small),
        "flux": said(pack("nodes.shapeworld").load_clip()),
    }


with torch.inference_mode():
    tasks = {"embedded": embedded, "core": core, "refusals": refusals}
    print(json.dumps({name: task() for name, task in tasks.items() if TASK in (name, "all")}))
