"""PRIP's networks. An encoder maps a prompt to a pivot, the embedding of a picture that people would prefer;
a language model decodes the pivot into the prompt of that picture.

Source: Prompt Refinement with Image Pivot (Zhan et al. 2024, arXiv 2407.00247), section 3.2 and appendix A.5:
Preference Encoder (T5, encoder and decoder), linear layer, template, language model.
Beyond the paper, which leaves queries, template and the pivots' scale open: T5's decoder reads learned
queries with bidirectional attention, and pivots are standardised per number with statistics from the
checkpoint.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import BadInput, CheckpointError, plain
from ...core.model_files import user_path
from ...storage.checksums import check_folder
from ..decoding import end_tokens, pad_token
from ..prompting import control_tokens
from ..reprompt import SETTINGS, load_checkpoint
from .checkpoint import (
    STATISTICS,
    PripConfig,
    is_own_weight,
    load_part,
    load_t5,
    read_config,
    read_own_weights,
    save_tokenizer,
)
from .vision import ImagePivot

# Added text begins with a space or one of these marks; anything else would extend the user's last word.
MARKS = ",.;:!?…，。、；：！？"


class PreferenceEncoder(nn.Module):
    """Prompts -> standardised pivots.

    T5's encoder reads the prompt, its decoder maps learned queries to vectors, and a linear layer projects
    them to the pivot's width.
    """

    def __init__(self, t5: Any, config: PripConfig):
        super().__init__()
        self.t5 = t5
        self.queries = nn.Embedding(config.queries, t5.config.d_model)
        self.head = nn.Linear(t5.config.d_model, config.width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, T) -> (B, queries, width)."""
        queries = self.queries.weight.expand(len(input_ids), -1, -1)
        # T5's decoder is causal unless it gets a mask for every pair. All zeros: every query sees all others.
        bidirectional = queries.new_zeros(len(queries), 1, queries.shape[1], queries.shape[1])
        states = self.t5(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_inputs_embeds=queries,
            decoder_attention_mask=bidirectional,
            use_cache=False,
        ).last_hidden_state
        return self.head(states)


class Prip(nn.Module):
    """Encoder, projector and decoder with their tokenizers, and the statistics of pictures' pivots.

    `t5` is a T5Model, `decoder` any causal language model.
    """

    pivot_mean: Tensor
    pivot_std: Tensor

    def __init__(
        self,
        config: PripConfig,
        t5: Any,
        decoder: Any,
        encoder_tokenizer: Any = None,
        decoder_tokenizer: Any = None,
    ):
        super().__init__()
        self.config = config
        self.encoder_tokenizer, self.decoder_tokenizer = encoder_tokenizer, decoder_tokenizer
        self.encoder = PreferenceEncoder(t5, config)
        self.projector = nn.Linear(config.width, decoder.config.get_text_config().hidden_size)
        self.decoder = decoder
        for name in STATISTICS:  # NaN until they are measured over pictures
            self.register_buffer(name, torch.full((config.queries, config.width), torch.nan))

    @property
    def device(self) -> torch.device:
        return self.projector.weight.device

    # Prompts and pictures -> pivots

    def encoder_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts for the encoder. Raises BadInput for a prompt longer than its window."""
        ids = [
            self.encoder_tokenizer(_plain(prompt, self.encoder_tokenizer), verbose=False)["input_ids"]
            for prompt in prompts
        ]
        for prompt, row in zip(prompts, ids, strict=True):
            check_length(prompt, len(row), self.config.window)
        return ids

    def encode(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Token ids from `encoder_ids` -> standardised pivots (B, queries, width)."""
        width = max(map(len, ids))
        pad = self.encoder_tokenizer.pad_token_id
        padded = self._ids([[*row, *[pad] * (width - len(row))] for row in ids])
        return self.encoder(padded, self._ids([[1] * len(row) + [0] * (width - len(row)) for row in ids]))

    def _ids(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Sets mean and standard deviation (queries, width) of pivots over pictures.

        Raises CheckpointError for another shape, values that are not finite, or a deviation of 0 or less.
        """
        for name, statistic in zip(STATISTICS, (mean, std)):
            buffer = getattr(self, name)
            if statistic.shape != buffer.shape:
                raise CheckpointError(
                    f"expected {name} of shape {tuple(buffer.shape)}, got "
                    f"{tuple(statistic.shape)}; train the refiner's first stages again"
                )
            buffer.copy_(statistic)
        if not (self.pivot_mean.isfinite().all() and self.pivot_std.isfinite().all()):
            raise CheckpointError("pivot_mean or pivot_std is not finite; train the first stages again")
        if not (self.pivot_std > 0).all():
            raise CheckpointError(
                "pivot_std has numbers that are not above 0, where pictures' embeddings "
                "never vary; take a trained vision tower"
            )

    def standardise(self, pivots: Tensor) -> Tensor:
        """Pivots of pictures (B, queries, width) from `ImagePivot` -> standardised pivots."""
        assert self.pivot_mean.isfinite().all(), "no statistics yet"
        mean, std = self.pivot_mean.to(pivots.device), self.pivot_std.to(pivots.device)
        return ((pivots.float() - mean) / std).to(self.device)

    # Pivots -> prompts

    def decoder_ids(self, text: str) -> list[int]:
        """Token ids of a prompt, or of its beginning, for the decoder."""
        return self.decoder_tokenizer(
            _plain(text, self.decoder_tokenizer), add_special_tokens=False, verbose=False
        )["input_ids"]

    @cached_property
    def template(self) -> tuple[list[int], list[int]]:
        """Token ids (before, after) the pivot in the decoder's input."""
        before, after = (
            self.decoder_tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (self.config.before, self.config.after)
        )
        first = self.decoder_tokenizer.bos_token_id
        return [*([] if first is None else [first]), *before], after

    def template_length(self) -> int:
        """Tokens of the decoder's context that template and pivot occupy."""
        return sum(map(len, self.template)) + self.config.queries

    def decoder_inputs(self, pivots: Tensor, prefixes: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The decoder's input: template, pivots (B, queries, width) and the prefix of each prompt.

        Returns `inputs_embeds` (B, L, hidden) and `attention_mask` (B, L), padded on the left.
        """
        embed = self.decoder.get_input_embeddings()
        before, after = (embed(self._ids(ids)) for ids in self.template)
        projected = self.projector(pivots.to(self.projector.weight.dtype))
        rows = [
            torch.cat([before, pivot, after, embed(self._ids(prefix))])
            for pivot, prefix in zip(projected, prefixes, strict=True)
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
        continuation: bool = False,
    ) -> Tensor:
        """The decoder's logits for each token of `answers` (teacher forcing): (B, T, V), float32.

        T is the longest answer's length; logits beyond an answer's end are meaningless. `continuation`: the
        first token must be one of `continuation_tokens`, as when a user's prompt is continued. Gradients
        reach the encoder through `pivots`.
        """
        return self.logits_and_states(pivots, prefixes, answers, continuation)[0]

    def logits_and_states(
        self,
        pivots: Tensor,
        prefixes: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        continuation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`logits`, and the decoder's hidden states (B, T, hidden) that they are computed from."""
        inputs = self.decoder_inputs(pivots, prefixes)
        most = max(map(len, answers))
        ids = self._ids([[*row, *[pad_token(self.decoder_tokenizer)] * (most - len(row))] for row in answers])
        mask = self._ids([[1] * len(row) + [0] * (most - len(row)) for row in answers])
        mask = torch.cat([inputs["attention_mask"], mask], 1)
        embeds = torch.cat([inputs["inputs_embeds"], self.decoder.get_input_embeddings()(ids)], 1)
        places = (
            {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
            if self._decoder_accepts("position_ids")
            else {}
        )
        # Vocabularies are large: compute logits from the input's last position on only.
        kept = {"logits_to_keep": most + 1} if self._decoder_accepts("logits_to_keep") else {}
        states: list[Tensor] = []
        head = self.decoder.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda module, arguments: states.append(arguments[0]))
        try:
            out = self.decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **places, **kept)
        finally:
            hook.remove()
        logits = out.logits[:, -most - 1 : -1].float()
        if continuation:
            first = logits[:, :1].masked_fill(~self.continuation_tokens.to(self.device), -torch.inf)
            logits = torch.cat([first, logits[:, 1:]], 1)
        return logits, states[0][:, -most - 1 : -1]

    def _decoder_accepts(self, name: str) -> bool:
        return name in inspect.signature(self.decoder.forward).parameters

    @cached_property
    def continuation_tokens(self) -> Tensor:
        """(V,) bool: tokens that may follow the user's words. They begin with a space or a mark, or end the
        text."""
        allowed = self._tokens_where(lambda text: text[:1] == " " or text[:1] in MARKS)
        allowed[end_tokens(self.decoder, self.decoder_tokenizer)] = True
        return allowed

    @cached_property
    def word_tokens(self) -> Tensor:
        """(V,) bool: tokens with a letter or a digit, with which a prompt without a prefix may begin."""
        return self._tokens_where(lambda text: any(letter.isalnum() for letter in text))

    def _tokens_where(self, accepts: Callable[[str], bool]) -> Tensor:
        # Each token is decoded after a word: alone, some tokenizers drop the space that a token begins with.
        anchor = self.decoder_tokenizer("a", add_special_tokens=False)["input_ids"][-1]
        pairs = [[anchor, token] for token in range(len(self.decoder_tokenizer))]
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        start = len(self.decoder_tokenizer.decode([anchor], **plain))
        texts = [text[start:] for text in self.decoder_tokenizer.batch_decode(pairs, **plain)]
        vocabulary = self.decoder.get_output_embeddings().weight.shape[0]
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        for token, text in enumerate(texts[:vocabulary]):
            allowed[token] = bool(text) and "\ufffd" not in text and accepts(text)
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
        """Writes a refiner's folder.

        `settings` go into its `reprise.json`, `image` into its folder `image/`. `frozen` is a refiner's
        folder whose decoder and projector are copied unchanged. Raises CheckpointError for a model without
        pivot statistics.
        """
        from safetensors.torch import save_file

        if not all(getattr(self, name).isfinite().all() for name in STATISTICS):
            raise CheckpointError(
                "this refiner has no pivot statistics yet; measure them over pictures (set_statistics) first"
            )
        where = Path(folder)
        for part, model, tokenizer in (
            ("encoder", self.encoder.t5, self.encoder_tokenizer),
            ("decoder", self.decoder, self.decoder_tokenizer),
        ):
            if part == "decoder" and frozen is not None:
                check_folder(frozen / part)  # a copy gets checksums of its own
                shutil.copytree(frozen / part, where / part)
                continue
            model.save_pretrained(where / part)
            save_tokenizer(tokenizer, where / part)
        if image is not None:
            image.save_pretrained(where / "image")
        weights = {
            name: tensor.contiguous() for name, tensor in self.state_dict().items() if is_own_weight(name)
        }
        if frozen is not None:
            check_folder(frozen, deep=False)
            original = read_own_weights(frozen / "model.safetensors")
            weights |= {name: original[name] for name in weights if name.startswith("projector.")}
        save_file(weights, where / "model.safetensors", metadata={"format": "pt"})
        all_settings = {"format": 1, "role": "refiner", **(settings or {})}
        for name, text in (
            ("config.json", self.config.model_dump_json(indent=1)),
            (SETTINGS, json.dumps(all_settings, indent=1, ensure_ascii=False)),
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
        """The model in a folder, in eval mode, without its vision tower.

        `dtype` as for `load_checkpoint`; `encoder_dtype` is the encoder's, by default the decoder's. Raises
        CheckpointError if the folder is no refiner, or a part is missing, damaged or of another model.
        """
        from transformers import AutoConfig

        where = user_path(folder)
        check_folder(where, deep=False)  # of each part, whoever loads it
        config = read_config(where)
        weights = read_own_weights(where / "model.safetensors")
        decoder_config = load_part(
            "decoder", where / "decoder", lambda path: AutoConfig.from_pretrained(path)
        )
        expected, width = len(weights["projector.weight"]), decoder_config.get_text_config().hidden_size
        if expected != width:
            raise CheckpointError(
                f"the decoder in {where / 'decoder'} is {width} wide, this refiner's "
                f"projector writes {expected}; put the decoder back that it was trained with"
            )
        decoder, decoder_tokenizer, _ = load_checkpoint(str(where / "decoder"), device, dtype)
        t5, encoder_tokenizer = load_part("encoder", where / "encoder", load_t5)
        expected, width = weights["encoder.queries.weight"].shape[1], t5.config.d_model
        if expected != width:
            raise CheckpointError(
                f"the encoder in {where / 'encoder'} is {width} wide, this refiner's "
                f"queries are {expected}; put the encoder back that it was trained with"
            )
        model = cls(config, t5, decoder, encoder_tokenizer, decoder_tokenizer)
        try:
            missing, unexpected = model.load_state_dict(
                {name: tensor for name, tensor in weights.items() if name not in STATISTICS}, strict=False
            )
        except RuntimeError as error:  # shapes
            raise CheckpointError(
                f"{where / 'model.safetensors'} does not fit {where / 'config.json'}: "
                f"{_second_line(error)}; train the refiner again"
            ) from error
        lacking = [name for name in missing if is_own_weight(name) and name not in STATISTICS]
        if lacking or unexpected:
            raise CheckpointError(
                f"{where / 'model.safetensors'} lacks {lacking or 'nothing'} and has "
                f"{unexpected or 'nothing'} besides; train the refiner again"
            )
        model.set_statistics(*(weights[name] for name in STATISTICS))
        model.projector.to(decoder.dtype)
        # T5's activations overflow float16.
        chosen = getattr(torch, encoder_dtype) if encoder_dtype else decoder.dtype
        model.encoder.to(torch.float32 if chosen == torch.float16 else chosen)
        return model.to(device).eval()


def untrained(config: PripConfig, encoder: str, decoder: str, *, dtype: str = "float32") -> Prip:
    """The model that training starts from, without statistics.

    `encoder` and `decoder` are a published T5 and language model (folders or Hugging Face names). Queries,
    head and projector are new, initialised from torch's generator. Raises CheckpointError.
    """
    language_model, decoder_tokenizer, _ = load_checkpoint(decoder, "cpu", dtype)
    t5, encoder_tokenizer = load_part("encoder", encoder, load_t5)
    model = Prip(config, t5, language_model, encoder_tokenizer, decoder_tokenizer)
    with torch.no_grad():
        # A pivot's numbers have unit variance; projected vectors get the variance of word embeddings.
        std = language_model.get_input_embeddings().weight.float().std()
        model.projector.weight.normal_(0, float(std) * config.width**-0.5)
        model.projector.bias.zero_()
    return model.to(getattr(torch, dtype))


def check_length(prompt: str, length: int, room: int) -> None:
    """Raises BadInput if a prompt of `length` tokens has more than `room`."""
    if length > room:
        short = plain(prompt, 40)
        raise BadInput(f"the prompt {short!r} is {length} tokens long, this refiner reads {room}; shorten it")


def _plain(text: str, tokenizer: Any) -> str:
    """The text on one line, without the tokenizer's control tokens."""
    for token in control_tokens(tokenizer):
        text = text.replace(token, " ")
    return " ".join(text.split())


def _second_line(error: Exception) -> str:
    """The first mismatched key in torch's error message."""
    lines = str(error).strip().splitlines()
    return lines[min(1, len(lines) - 1)].strip()
