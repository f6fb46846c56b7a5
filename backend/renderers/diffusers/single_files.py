"""A pipeline from single files: the denoiser's, with text encoders and VAE in it or beside it.

diffusers' own converters rename and split the weights; configs are read off their shapes (`model_configs`),
so that nothing is fetched. What a file does not hold is taken, in this order, from the files named for it,
from a base folder in diffusers' layout, and from the ComfyUI that was named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.clip_vocabulary import clip_vocabulary
from ...core.errors import BadInput, CheckpointError, Unsupported, first_line
from ...core.model_files import quiet_loading
from ...storage.files import read_json
from . import model_configs as configs
from .checkpoints import load_model, read_index
from .comfyui_folders import ComfyuiFolders
from .converters import build, from_open_clip, own_memory
from .layouts import LAYOUTS, VAE, Text, recognise, text_kind, under, vae_kind
from .weight_files import Header, read_header, read_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# A tokenizer of ComfyUI's for each kind of text encoder, and its class in transformers.
_TOKENIZERS = {
    "clip": ("sd1_tokenizer", "CLIPTokenizer"),
    "open-clip": ("sd1_tokenizer", "CLIPTokenizer"),
    "t5": ("text_encoders/t5_tokenizer", "T5TokenizerFast"),
    "qwen3": ("text_encoders/qwen25_tokenizer", "Qwen2TokenizerFast"),
    "qwen3-vl": ("text_encoders/qwen25_tokenizer", "Qwen2TokenizerFast"),
    "qwen2.5-vl": ("text_encoders/qwen25_tokenizer", "Qwen2TokenizerFast"),
}
_READ_TEXT = {
    "clip": configs.clip,
    "open-clip": configs.open_clip,
    "t5": configs.t5,
    "qwen3": configs.qwen3,
    "qwen3-vl": configs.qwen3_vl,
    "qwen2.5-vl": configs.qwen25_vl,
}
# ComfyUI's tokenizer has Qwen2.5's template, which speaks of a helpful assistant. This is Qwen3's for one
# message: comfy/text_encoders/z_image.py with thinking, flux.py (klein) without.
_QWEN3_TEMPLATE = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@dataclass(frozen=True)
class Rest:
    """Where the parts are that a file does not hold."""

    files: Mapping[str, Path] = field(default_factory=dict)
    """{component of the pipeline: its file}, such as text_encoder_2 or vae."""
    base: Path | None = None
    """A folder in diffusers' layout of the same family: configs, tokenizers, scheduler, missing parts."""
    comfyui: ComfyuiFolders | None = None


@dataclass
class Opened:
    pipeline: Any
    files: dict[str, Path]
    """{component: the file or folder that it was read from}"""


class SingleFile:
    """One file with a denoiser: what it is shows when it is opened, weights are read by `load`."""

    def __init__(self, path: Path, rest: Rest = Rest()):
        """Raises BadInput, CheckpointError, and Unsupported for a file that is no denoiser known here."""
        self.path, self.rest = path, rest
        self.header = read_header(path)
        self.index = None if rest.base is None else read_index(rest.base)
        found = recognise(self.header.shapes)
        if found is None:
            raise Unsupported(_unknown(path, self.header))
        self.layout, self.prefix = found
        if self.index is None and self.layout.base_only:
            raise Unsupported(_needs_base(path, self.layout.name))
        shapes = under(self.prefix, self.header.shapes)
        self.config = self._config(self.layout.component, lambda: self.layout.read(shapes))
        if self.index is None and self.config.get("guidance_embeds") and self.layout.name == "FLUX.2":
            raise Unsupported(_needs_base(path, "FLUX.2 dev"))
        self.predicts_v = "v_pred" in self.header.shapes  # how NoobAI and others mark it

    @property
    def pipeline_class(self) -> str:
        return self.layout.pipeline if self.index is None else str(self.index["_class_name"])

    def load(self, dtype: torch.dtype, others: Mapping[str, torch.dtype] | None = None) -> Opened:
        """The pipeline, on the CPU, in eval mode; parts named in `others` in the dtype given there. Raises
        what the constructor does, and BadInput that names the parts that are nowhere."""
        import diffusers

        layout = self.layout
        places = {"vae": self._place_vae(), **{name: self._place_text(name) for name in layout.text}}
        missing = {name: kind for name, (kind, _, _) in places.items() if kind}
        if missing:
            raise BadInput(self._missing(missing))
        with quiet_loading():
            inside = read_tensors(self.path)
            parts: dict[str, Any] = {}
            used = {layout.component: self.path}
            for name, (_, file, prefix) in places.items():
                kind = (others or {}).get(name, dtype)
                if file is None:
                    assert self.rest.base is not None and self.index is not None
                    parts[name] = load_model(self.rest.base / name, self.index[name], kind)
                    used[name] = self.rest.base / name
                    continue
                tensors = under(prefix, inside if file == self.path else read_tensors(file))
                used[name] = file
                if name == "vae":
                    parts[name] = self._vae(tensors, file, kind)
                else:
                    parts[name] = self._text(name, layout.text[name], tensors, file, kind)
            own = under(self.prefix, inside)
            del inside
            self._read_prediction(own)
            parts[layout.component] = build(layout.denoiser, self.config, own, self.path, dtype)
            for text in layout.text.values():
                parts[text.tokenizer] = self._tokenizer(text)
            parts["scheduler"] = self._scheduler()
            options = {**layout.options, **self._options()}
            try:
                pipeline = getattr(diffusers, self.pipeline_class)(**parts, **options)
            except (TypeError, ValueError) as error:
                raise CheckpointError(
                    f"{self.path} and its parts make no {self.pipeline_class} ({first_line(error)}); "
                    "check that --base is of the same family"
                ) from error
        return Opened(pipeline, dict(sorted(used.items())))

    # Where the parts are: (what is missing or "", file or None for the base, prefix in it)

    def _place_vae(self) -> tuple[str, Path | None, str]:
        if "vae" not in self.rest.files:
            for prefix in VAE:
                if vae_kind(under(prefix, self.header.shapes)):
                    return "", self.path, prefix
        channels = self._latent_channels()
        what = f"a VAE ({self.layout.vae}, {channels} channels)"

        def fits(header: Header) -> bool:
            return vae_kind(header.shapes) == (self.layout.vae, channels)

        return self._place("vae", what, fits, ("vae",), self.layout.vae_hints, self.layout.needs_hint)

    def _place_text(self, name: str) -> tuple[str, Path | None, str]:
        text = self.layout.text[name]
        if name not in self.rest.files and any(key.startswith(text.inside) for key in self.header.shapes):
            return "", self.path, text.inside
        width = text.width(self.config)
        kinds = {"clip", "open-clip"} if text.kind == "open-clip" else {text.kind}

        def fits(header: Header) -> bool:
            kind = text_kind(header.shapes)
            return kind is not None and kind[0] in kinds and kind[1] == width

        return self._place(name, f"a text encoder ({text.kind}, width {width})", fits, ("text_encoders",), ())

    def _place(
        self,
        name: str,
        what: str,
        fits: Any,
        folders: tuple[str, ...],
        hints: tuple[str, ...],
        needs_hint: bool = False,
    ) -> Any:
        if (file := self.rest.files.get(name)) is not None:
            if not fits(read_header(file)):
                raise BadInput(f"--part {name}={file}: expected {what} in its original names")
            return "", file, ""
        if self.index is not None and self.rest.base is not None and (self.rest.base / name).is_dir():
            return "", None, ""
        if self.rest.comfyui is not None:
            found = self.rest.comfyui.find(folders, fits, hints, f"--part {name}=FILE", what, needs_hint)
            if found is not None:
                return "", found, ""
        return what, None, ""

    def _latent_channels(self) -> int:
        channels = self.config["in_channels"]
        return channels // 4 if self.layout.packed else channels

    def _missing(self, missing: Mapping[str, str]) -> str:
        wanted = "; ".join(f"{name}: {what}" for name, what in missing.items())
        return (
            f"{self.path.name} is a {self.layout.name} denoiser, and parts of its pipeline are missing "
            f"({wanted}); give --comfyui DIR of the ComfyUI that has them, --part NAME=FILE for each, or "
            "--base FOLDER in diffusers' layout"
        )

    # The parts

    def _config(self, component: str, read: Any) -> dict[str, Any]:
        """Of the base where there is one, else read off the weights."""
        if self.rest.base is not None:
            path = self.rest.base / component / "config.json"
            if path.is_file():
                return read_json(path, "fetch its folder anew", {})
        try:
            return read()
        except (KeyError, IndexError, ValueError, StopIteration) as error:
            raise CheckpointError(
                f"{self.path}: the {component} cannot be read off its weights (no {error}); it is cut short, "
                "or of a variant that needs --base FOLDER in diffusers' layout"
            ) from None

    def _vae(self, tensors: dict[str, Tensor], file: Path, dtype: torch.dtype) -> Any:
        layout = self.layout
        wan = layout.vae == "AutoencoderKLQwenImage"
        read = configs.wan_autoencoder if wan else configs.autoencoder
        config = self._config("vae", lambda: {**read(_shapes(tensors)), **layout.vae_config})
        return build(layout.vae, config, tensors, file, dtype)

    def _text(self, name: str, text: Text, tensors: dict[str, Tensor], file: Path, dtype: torch.dtype) -> Any:
        import transformers

        if text.kind == "open-clip" and "positional_embedding" in tensors:
            tensors = from_open_clip(tensors)
        if text.kind == "t5" and "shared.weight" not in tensors and "encoder.embed_tokens.weight" in tensors:
            tensors["shared.weight"] = tensors["encoder.embed_tokens.weight"]
        if text.kind.startswith("qwen"):
            tensors = _language_model(tensors)
        settings = self._config(name, lambda: _READ_TEXT[text.kind](_shapes(tensors)))
        if text.unused:
            layers = configs.count(_shapes(tensors), r"text_model\.encoder\.layers\.(\d+)\.")
            settings = {**settings, "num_hidden_layers": layers - text.unused}
            gone = tuple(f"text_model.encoder.layers.{layers - 1 - i}." for i in range(text.unused))
            tensors = {key: value for key, value in tensors.items() if not key.startswith(gone)}
        made = getattr(transformers, text.model)
        config = made.config_class(**settings)
        if text.kind.startswith("qwen"):
            tensors = _named_as(made, tensors)
        try:
            model, report = made.from_pretrained(
                None,
                config=config,
                state_dict=own_memory(tensors, dtype),
                dtype=dtype,
                output_loading_info=True,
            )
        except Exception as error:
            raise CheckpointError(
                f"{file} cannot be read as {text.model} ({first_line(error)}); copy it anew"
            ) from error
        for kind in ("missing_keys", "mismatched_keys"):
            # Neither a language model's head nor its vision model is used.
            found = sorted(map(str, report.get(kind) or ()))
            wrong = [key for key in found if not key.startswith("lm_head") and "visual." not in key]
            if wrong:
                raise CheckpointError(
                    f"{file} does not fit {text.model} ({kind.replace('_', ' ')}: {len(wrong)}, first "
                    f"{wrong[0]}); copy it anew"
                )
        return model.eval()

    def _tokenizer(self, text: Text) -> Any:
        import transformers

        if self.rest.base is not None and (self.rest.base / text.tokenizer).is_dir():
            assert self.index is not None
            made = getattr(transformers, self.index[text.tokenizer][1])
            return made.from_pretrained(self.rest.base / text.tokenizer, local_files_only=True)
        if text.kind in ("clip", "open-clip"):
            pieces, merges = clip_vocabulary()
            words = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
            pairs: Any = merges  # declared as strings, and read as pairs
            return transformers.CLIPTokenizer(
                vocab=words, merges=pairs, model_max_length=text.length, pad_token=text.pad
            )
        folder, made = _TOKENIZERS[text.kind]
        place = None if self.rest.comfyui is None else self.rest.comfyui.root / "comfy" / folder
        if place is None or not place.is_dir():
            raise BadInput(
                f"{self.path.name} needs the tokenizer of its {text.kind} text encoder: give --comfyui DIR, "
                "whose code has it, or --base FOLDER in diffusers' layout"
            )
        tokenizer = getattr(transformers, made).from_pretrained(
            place, local_files_only=True, model_max_length=text.length
        )
        if text.kind == "qwen3":
            tokenizer.chat_template = _QWEN3_TEMPLATE
        return tokenizer

    def _read_prediction(self, own: Mapping[str, Tensor]) -> None:
        """SD 2 predicts noise at 512 pixels, or v at 768. Its files do not say which; what tells them apart
        is from comfy/supported_models.py, SD20."""
        bias = own.get("output_blocks.11.1.transformer_blocks.0.norm1.bias")
        if self.layout.name == "SD2.x" and self.index is None:
            self.predicts_v = bias is not None and bool(bias.float().std(unbiased=False) > 0.09)
            self.config["sample_size"] = 96 if self.predicts_v else 64

    def _scheduler(self) -> Any:
        import diffusers

        if self.rest.base is not None and self.index is not None:
            made = getattr(diffusers, self.index["scheduler"][1])
            return made.from_pretrained(self.rest.base / "scheduler", local_files_only=True)
        name, settings = self.layout.scheduler
        settings, shapes = dict(settings), self.header.shapes
        if self.layout.name == "FLUX" and not self.config["guidance_embeds"]:
            settings = {"shift": 1.0}  # schnell
        # Their scheduler_config.json: 3 of the Turbo, 6 of the base (invoke-ai/InvokeAI#8799).
        if self.layout.name == "Z-Image" and not self._named("turbo"):
            settings["shift"] = 6.0
        if self.predicts_v:
            settings |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in shapes}
        return getattr(diffusers, name)(**settings)

    def _options(self) -> dict[str, Any]:
        """Options of the pipeline that its weights do not show: the base's, else what the file is called."""
        if self.index is not None:
            known = ("is_distilled", "force_zeros_for_empty_prompt", "text_encoder_select_layers")
            return {name: self.index[name] for name in known if name in self.index}
        if self.layout.name == "FLUX.2":
            return {"is_distilled": not self._named("base")}
        return {"is_distilled": self._named("turbo")} if self.layout.name == "Krea 2" else {}

    def _named(self, word: str) -> bool:
        return word in self.path.name.lower()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _language_model(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without a vision model, in the names of a language model alone."""
    made = {key: value for key, value in tensors.items() if ".visual." not in f".{key}"}
    for start in ("model.language_model.", "language_model."):
        if any(key.startswith(start) for key in made):
            return {
                f"model.{key.removeprefix(start)}" if key.startswith(start) else key: value
                for key, value in made.items()
            }
    return made


def _named_as(made: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A language model's weights in the names of a class that has it inside, or alone."""
    inside = {"Qwen3Model": "", "Qwen3VLModel": "language_model.", "Qwen3ForCausalLM": "model."}
    start = inside.get(made.__name__, "model.language_model.")
    return {
        start + key.removeprefix("model.") if key.startswith("model.") else key: value
        for key, value in tensors.items()
    }


def _needs_base(path: Path, what: str) -> str:
    return f"{path} is {what}: give its diffusers folder or hub name with --base"


def _unknown(path: Path, header: Header) -> str:
    shapes = header.shapes
    if any(".lora_" in key or key.endswith((".alpha", ".dora_scale")) for key in shapes):
        return f"{path.name} is a LoRA, not a model; give it with --lora"
    if (kind := text_kind(shapes)) is not None:
        return (
            f"{path.name} is a text encoder ({kind[0]}), not a denoiser; give it by --part text_encoder=FILE"
        )
    if vae_kind(shapes) is not None:
        return f"{path.name} is a VAE, not a denoiser; name it with --part vae=FILE"
    known = ", ".join(layout.name for layout in LAYOUTS)
    first = next(iter(sorted(shapes)), "nothing")
    return (
        f"{path.name} is of no family that is known by its keys ({known}; its first key is {first}); give "
        "the model's folder in diffusers' layout, or draw through ComfyUI with comfyui:WORKFLOW.json@URL"
    )
