"""PRIP's networks: a prompt becomes a pivot, the embedding of a picture that people would prefer, and a
language model writes the prompt of that picture.

Source: Prompt Refinement with Image Pivot (Zhan et al. 2024, arXiv 2407.00247), section 3.2 and appendix A.5:
Preference Encoder (T5, encoder and decoder), linear layer, template, language model. The paper says nothing
of the queries, the template or the pivots' scale. Here T5's decoder reads learned queries, which see each
other in both directions, and pivots are standardised number by number, by statistics in the checkpoint.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import PositiveInt, ValidationError
from torch import Tensor, nn

from ...core.config import Config, validation_message
from ...core.errors import BadInput, CheckpointError, first_line, plain
from ...core.model_files import quiet_loading
from ..decoding import end_tokens, pad_token
from ..prompting import control_tokens
from ..reprompt import SETTINGS, load_checkpoint
from .vision import ImagePivot

# An added text begins with a space or one of these; anything else would lengthen the user's last word.
MARKS = ",.;:!?…，。、；：！？"
_STATISTICS = ("pivot_mean", "pivot_std")


class PripConfig(Config):
    """`config.json` of a refiner's folder. `encoder/`, `decoder/` and `image/` in it have their own."""

    model_type: Literal["prip"] = "prip"
    format: Literal[1] = 1
    queries: PositiveInt = 32  # vectors in a pivot
    width: PositiveInt = 768  # numbers in each
    window: PositiveInt = 512  # tokens of a prompt that the encoder reads
    before: str = "Picture:"  # what the decoder reads before the pivot
    after: str = "\nPrompt:\n"  # and between the pivot and the prompt, which begins a line: no space is cut


class PreferenceEncoder(nn.Module):
    """Prompts -> standardised pivots: T5's encoder reads the words, its decoder turns learned queries into
    vectors, a linear layer gives them the pivot's width."""

    def __init__(self, t5: Any, config: PripConfig):
        super().__init__()
        self.t5 = t5
        self.queries = nn.Embedding(config.queries, t5.config.d_model)
        self.head = nn.Linear(t5.config.d_model, config.width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, T) -> (B, queries, width)."""
        queries = self.queries.weight.expand(len(input_ids), -1, -1)
        # T5's decoder is causal unless it is given a mask for every pair: nothing is hidden from any query.
        seen = queries.new_zeros(len(queries), 1, queries.shape[1], queries.shape[1])
        states = self.t5(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_inputs_embeds=queries,
            decoder_attention_mask=seen,
            use_cache=False,
        ).last_hidden_state
        return self.head(states)


class Prip(nn.Module):
    """Encoder, projector and decoder with their tokenizers, and the statistics of pictures' pivots.

    `t5` is a T5Model, `decoder` any causal language model; `reader` and `writer` are their tokenizers.
    """

    pivot_mean: Tensor
    pivot_std: Tensor

    def __init__(self, config: PripConfig, t5: Any, decoder: Any, reader: Any = None, writer: Any = None):
        super().__init__()
        self.config, self.reader, self.writer = config, reader, writer
        self.encoder = PreferenceEncoder(t5, config)
        self.projector = nn.Linear(config.width, decoder.config.get_text_config().hidden_size)
        self.decoder = decoder
        for name in _STATISTICS:  # not known before pictures were looked at
            self.register_buffer(name, torch.full((config.queries, config.width), torch.nan))

    @property
    def device(self) -> torch.device:
        return self.projector.weight.device

    # Prompts and pictures -> pivots

    def read(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids as the encoder reads them. Raises BadInput for a prompt that its window does not hold."""
        ids = [self.reader(_plain(prompt, self.reader), verbose=False)["input_ids"] for prompt in prompts]
        for prompt, row in zip(prompts, ids, strict=True):
            check_length(prompt, len(row), self.config.window)
        return ids

    def encode(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """What `read` gave -> standardised pivots (B, queries, width)."""
        width = max(map(len, ids))
        pad = self.reader.pad_token_id
        padded = self._ids([[*row, *[pad] * (width - len(row))] for row in ids])
        return self.encoder(padded, self._ids([[1] * len(row) + [0] * (width - len(row)) for row in ids]))

    def _ids(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Of pictures' pivots (queries, width), over pictures. Raises CheckpointError where they are none."""
        for name, found in zip(_STATISTICS, (mean, std)):
            kept = getattr(self, name)
            if found.shape != kept.shape:
                raise CheckpointError(
                    f"expected {name} of shape {tuple(kept.shape)}, got "
                    f"{tuple(found.shape)}; train the refiner's first stages again"
                )
            kept.copy_(found)
        if not (self.pivot_mean.isfinite().all() and self.pivot_std.isfinite().all()):
            raise CheckpointError("pivot_mean or pivot_std is not finite; train the first stages again")
        if not (self.pivot_std > 0).all():
            raise CheckpointError(
                "pivot_std has numbers that are not above 0, where pictures' embeddings "
                "never vary; take a trained vision tower"
            )

    def standardise(self, pivots: Tensor) -> Tensor:
        """Pictures' pivots (B, queries, width) as `ImagePivot` gives them -> standardised."""
        assert self.pivot_mean.isfinite().all(), "no statistics yet"
        mean, std = self.pivot_mean.to(pivots.device), self.pivot_std.to(pivots.device)
        return ((pivots.float() - mean) / std).to(self.device)

    # Pivots -> prompts

    def write_ids(self, text: str) -> list[int]:
        """Token ids of a prompt, or of how it begins, as the decoder reads and writes them."""
        return self.writer(_plain(text, self.writer), add_special_tokens=False, verbose=False)["input_ids"]

    @cached_property
    def template(self) -> tuple[list[int], list[int]]:
        """Token ids before and after the pivot."""
        before, after = (
            self.writer(text, add_special_tokens=False)["input_ids"]
            for text in (self.config.before, self.config.after)
        )
        first = self.writer.bos_token_id
        return [*([] if first is None else [first]), *before], after

    def taken(self) -> int:
        """Tokens of the decoder's context that template and pivot take."""
        return sum(map(len, self.template)) + self.config.queries

    def inputs(self, pivots: Tensor, prefixes: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """What the decoder reads before it writes: template, pivots (B, queries, width) and how each prompt
        begins. `inputs_embeds` (B, L, hidden) and `attention_mask` (B, L), padded on the left."""
        embed = self.decoder.get_input_embeddings()
        before, after = (embed(self._ids(ids)) for ids in self.template)
        shown = self.projector(pivots.to(self.projector.weight.dtype))
        rows = [
            torch.cat([before, pivot, after, embed(self._ids(prefix))])
            for pivot, prefix in zip(shown, prefixes, strict=True)
        ]
        length = max(map(len, rows))
        embeds = torch.stack([nn.functional.pad(row, (0, 0, length - len(row), 0)) for row in rows])
        mask = self._ids([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        return {"inputs_embeds": embeds, "attention_mask": mask}

    def logits(
        self,
        pivots: Tensor,
        prefixes: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        guarded: bool = False,
    ) -> Tensor:
        """What the decoder thinks of each token of `answers`: (B, T, V), float32, T the longest answer's.

        Rows beyond an answer's end mean nothing. `guarded`: an answer may not begin with what `opening`
        forbids, as where a user's prompt is continued. Gradients reach the encoder through `pivots`.
        """
        return self.logits_and_states(pivots, prefixes, answers, guarded)[0]

    def logits_and_states(
        self,
        pivots: Tensor,
        prefixes: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        guarded: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`logits`, and the decoder's states (B, T, hidden) that they are made of."""
        begun = self.inputs(pivots, prefixes)
        most = max(map(len, answers))
        ids = self._ids([[*row, *[pad_token(self.writer)] * (most - len(row))] for row in answers])
        mask = self._ids([[1] * len(row) + [0] * (most - len(row)) for row in answers])
        mask = torch.cat([begun["attention_mask"], mask], 1)
        embeds = torch.cat([begun["inputs_embeds"], self.decoder.get_input_embeddings()(ids)], 1)
        places = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)} if self._takes("position_ids") else {}
        # Of the prompt only its last place says anything of the answer; vocabularies are large.
        kept = {"logits_to_keep": most + 1} if self._takes("logits_to_keep") else {}
        seen: list[Tensor] = []
        head = self.decoder.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        try:
            out = self.decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **places, **kept)
        finally:
            hook.remove()
        logits = out.logits[:, -most - 1 : -1].float()
        if guarded:
            first = logits[:, :1].masked_fill(~self.opening.to(self.device), -torch.inf)
            logits = torch.cat([first, logits[:, 1:]], 1)
        return logits, seen[0][:, -most - 1 : -1]

    def _takes(self, name: str) -> bool:
        return name in inspect.signature(self.decoder.forward).parameters

    @cached_property
    def opening(self) -> Tensor:
        """(V,) Tokens that may follow the user's words: those that end them (a space, a mark) and the end."""
        allowed = self._which(lambda text: text[:1] == " " or text[:1] in MARKS)
        allowed[end_tokens(self.decoder, self.writer)] = True
        return allowed

    @cached_property
    def words(self) -> Tensor:
        """(V,) Tokens that hold a letter or a digit: what a prompt from nothing begins with."""
        return self._which(lambda text: any(letter.isalnum() for letter in text))

    def _which(self, fits: Any) -> Tensor:
        # Decoded behind a word: alone, some tokenizers swallow the space that a token begins with.
        anchor = self.writer("a", add_special_tokens=False)["input_ids"][-1]
        pairs = [[anchor, token] for token in range(len(self.writer))]
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        begun = len(self.writer.decode([anchor], **plain))
        texts = [text[begun:] for text in self.writer.batch_decode(pairs, **plain)]
        vocabulary = self.decoder.get_output_embeddings().weight.shape[0]
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        for token, text in enumerate(texts[:vocabulary]):
            allowed[token] = bool(text) and "\ufffd" not in text and fits(text)
        return allowed

    # Files

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        settings: dict[str, Any] | None = None,
        image: ImagePivot | None = None,
        frozen: Path | None = None,
    ) -> None:
        """Write a refiner's folder; `settings` for its `reprise.json`, `image` where it is to come along.

        `frozen` is a refiner's folder whose decoder and projector are taken as they lie there.

        Raises CheckpointError for a model without pivot statistics.
        """
        from safetensors.torch import save_file

        if not all(getattr(self, name).isfinite().all() for name in _STATISTICS):
            raise CheckpointError("this refiner has no pivot statistics yet; look at pictures first")
        where = Path(folder)
        for part, model, tokenizer in (
            ("encoder", self.encoder.t5, self.reader),
            ("decoder", self.decoder, self.writer),
        ):
            if part == "decoder" and frozen is not None:
                shutil.copytree(frozen / part, where / part)
                continue
            model.save_pretrained(where / part)
            _save_tokenizer(tokenizer, where / part)
        if image is not None:
            image.save_pretrained(where / "image")
        bridge = {name: tensor.contiguous() for name, tensor in self.state_dict().items() if _is_bridge(name)}
        if frozen is not None:
            known = _read_bridge(frozen / "model.safetensors")
            bridge |= {name: known[name] for name in bridge if name.startswith("projector.")}
        save_file(bridge, where / "model.safetensors", metadata={"format": "pt"})
        known = {"format": 1, "role": "refiner", **(settings or {})}
        for name, text in (
            ("config.json", self.config.model_dump_json(indent=1)),
            (SETTINGS, json.dumps(known, indent=1, ensure_ascii=False)),
        ):
            (where / name).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str = "cpu",
        dtype: str | None = None,
        encoder_dtype: str | None = None,
    ) -> Prip:
        """The model in a folder, without its vision tower; `dtype` as for `load_checkpoint`.

        `encoder_dtype`, by default the same, is that of the encoder alone.

        Raises CheckpointError where the folder is none, or a part is missing, damaged or of another model.
        """
        from transformers import AutoConfig

        where = Path(folder).expanduser()
        config = _read_config(where)
        bridge = _read_bridge(where / "model.safetensors")
        decoder_config = _load("decoder", where / "decoder", lambda path: AutoConfig.from_pretrained(path))
        given, wide = len(bridge["projector.weight"]), decoder_config.get_text_config().hidden_size
        if given != wide:
            raise CheckpointError(
                f"the decoder in {where / 'decoder'} is {wide} wide, this refiner's "
                f"projector writes {given}; put the decoder back that it was trained with"
            )
        decoder, writer, _ = load_checkpoint(str(where / "decoder"), device, dtype)
        t5, reader = _load("encoder", where / "encoder", _t5)
        given, wide = bridge["encoder.queries.weight"].shape[1], t5.config.d_model
        if given != wide:
            raise CheckpointError(
                f"the encoder in {where / 'encoder'} is {wide} wide, this refiner's "
                f"queries are {given}; put the encoder back that it was trained with"
            )
        model = cls(config, t5, decoder, reader, writer)
        try:
            missing, unexpected = model.load_state_dict(
                {name: tensor for name, tensor in bridge.items() if name not in _STATISTICS}, strict=False
            )
        except RuntimeError as error:  # shapes
            raise CheckpointError(
                f"{where / 'model.safetensors'} does not fit {where / 'config.json'}: "
                f"{_second_line(error)}; train the refiner again"
            ) from error
        lacking = [name for name in missing if _is_bridge(name) and name not in _STATISTICS]
        if lacking or unexpected:
            raise CheckpointError(
                f"{where / 'model.safetensors'} lacks {lacking or 'nothing'} and has "
                f"{unexpected or 'nothing'} besides; train the refiner again"
            )
        model.set_statistics(*(bridge[name] for name in _STATISTICS))
        model.projector.to(decoder.dtype)
        # T5's numbers are too large for float16.
        own = getattr(torch, encoder_dtype) if encoder_dtype else decoder.dtype
        model.encoder.to(torch.float32 if own == torch.float16 else own)
        return model.to(device).eval()


def untrained(config: PripConfig, encoder: str, decoder: str, *, dtype: str = "float32") -> Prip:
    """What training starts from: a published T5 and language model (folders or hub names), new queries, head
    and projector from torch's generator, and no statistics. Raises CheckpointError."""
    language_model, writer, _ = load_checkpoint(decoder, "cpu", dtype)
    t5, reader = _load("encoder", encoder, _t5)
    model = Prip(config, t5, language_model, reader, writer)
    with torch.no_grad():
        # A pivot's numbers are of size 1: its vectors become as long as those of words.
        loud = language_model.get_input_embeddings().weight.float().std()
        model.projector.weight.normal_(0, float(loud) * config.width**-0.5)
        model.projector.bias.zero_()
    return model.to(getattr(torch, dtype))


def check_length(prompt: str, length: int, room: int) -> None:
    """Raises BadInput where a prompt has more tokens than there is room for."""
    if length > room:
        shown = plain(prompt, 40)
        raise BadInput(f"the prompt {shown!r} is {length} tokens long, this refiner reads {room}; shorten it")


def _plain(text: str, tokenizer: Any) -> str:
    """On one line, without what the tokenizer would take for the end of a text."""
    for token in control_tokens(tokenizer):
        text = text.replace(token, " ")
    return " ".join(text.split())


def _save_tokenizer(tokenizer: Any, where: Path) -> None:
    tokenizer.save_pretrained(where)
    path = where / "tokenizer_config.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(known.get("extra_special_tokens"), list):  # transformers 4 knows the list by its old name
        known["additional_special_tokens"] = known.pop("extra_special_tokens")
        path.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_bridge(name: str) -> bool:
    """Whether a weight is of none of the parts with folders of their own."""
    return not name.startswith(("encoder.t5.", "decoder."))


def _read_config(where: Path) -> PripConfig:
    path = where / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"no refiner at {where}: expected a folder with a config.json; give one that was trained"
        )
    try:
        return PripConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{path} is no refiner's: {validation_message(error)}; give a PRIP folder"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _read_bridge(path: Path) -> dict[str, Tensor]:
    """Queries, head, projector and statistics. Raises CheckpointError where one of them is missing."""
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except Exception as error:  # OSError, and what safetensors raises
        raise CheckpointError(f"cannot read {path}: {first_line(error)}; train the refiner again") from error
    if not all(name in found for name in _STATISTICS):
        raise CheckpointError(
            f"{path} has no pivot statistics (pivot_mean, pivot_std), without which pivots "
            "mean nothing; train the refiner's first stages"
        )
    for name in ("projector.weight", "encoder.queries.weight"):
        if name not in found or found[name].ndim != 2:
            raise CheckpointError(f"{path} lacks {name}; train the refiner again")
    return found


def _t5(where: Path | str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, T5Model

    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    loaded: Any = T5Model.from_pretrained(where, use_safetensors=True, output_loading_info=True)
    model, info = loaded
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if lacking:
        raise CheckpointError(
            f"{len(lacking)} of its weights are missing or have another shape (first: {lacking[0]})"
        )
    return model, tokenizer


def _load(part: str, where: Path | str, load: Any) -> Any:
    """What `load(where)` gives. Raises CheckpointError where it cannot."""
    if isinstance(where, Path) and not where.is_dir():
        raise CheckpointError(
            f"{where.parent} is no whole refiner: it holds no folder {where.name!r}; copy it again"
        )
    try:
        with quiet_loading():
            return load(where)
    except Exception as error:  # transformers, tokenizers and safetensors raise a dozen kinds
        raise CheckpointError(
            f"cannot load the {part} {where}: {first_line(error)}; fetch or train it again"
        ) from error


def _second_line(error: Exception) -> str:
    """The first key of torch's list of those that do not fit."""
    lines = str(error).strip().splitlines()
    return lines[min(1, len(lines) - 1)].strip()
