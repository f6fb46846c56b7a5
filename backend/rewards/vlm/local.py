"""A transformers image-text-to-text model that answers questions about pictures.

P(yes) comes from one forward pass. At the first token of the answer, it is the probability of all tokens that
say "yes" (in upper or lower case, with or without a leading space) over that of "yes" and "no" together;
VQAScore (arXiv 2404.01291) reads "Yes" alone. The pass is a `generate` of one token, because `generate` sets
each architecture's position ids under left padding: a row does not depend on its batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...core.errors import BadInput, CheckpointError, RewardFailed, Unsupported, first_line
from ...core.model_files import folder_fingerprint, quiet_loading, user_path
from ...storage.checksums import check_folder
from ..base import inference
from ..published.checkpoint import placement

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

MIN_ANSWER_MASS = 1e-3  # P(yes) + P(no) below this is no answer


class VlmAnswer(NamedTuple):
    """A model's answer in words, and whether the token limit cut it off."""

    text: str
    truncated: bool


class LocalVLM:
    """A VLM from a folder. It computes on its weights' device, in their precision; a host may move `model`
    between calls."""

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str = "",
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = 8,
    ):
        """`folder` in Hugging Face's layout, safetensors; `name` defaults to the folder's name. `device` and
        `dtype` as in `checkpoint.placement`.

        Raises CheckpointError if it is no such model or its tokenizer has no token for yes or no.
        """
        self.folder = user_path(folder)
        self.name, self.batch_size = name or self.folder.resolve().name, batch_size
        self._fingerprint: str | None = None
        where, kind = placement(device, dtype)
        self.processor, self.model = load(self.folder, kind)
        self.tokenizer = self.processor.tokenizer
        self.yes, self.no = (answer_tokens(self.tokenizer, word) for word in ("yes", "no"))
        if not (self.yes and self.no):
            raise self._unfit("its tokenizer has no token for yes or none for no")
        self._check_sees()
        self.model.to(where)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the folder's files, computed at first use."""
        if self._fingerprint is None:
            self._fingerprint = folder_fingerprint(self.folder)
        return self._fingerprint

    def yes_probabilities(self, pictures: Sequence[Image], questions: Sequence[str]) -> list[float]:
        """P(yes) of each question about its picture, 0..1.

        Raises RewardFailed if the model answers neither yes nor no.
        """
        probabilities = self.answer_probabilities(pictures, questions)
        if not all(yes + no >= MIN_ANSWER_MASS for yes, no in probabilities):  # False for NaN, too
            raise RewardFailed(
                f"vlm:{self.name}",
                "it answers neither yes nor no; take a model that is "
                "tuned to follow instructions and does not think first",
            )
        return [yes / (yes + no) for yes, no in probabilities]

    def answer_probabilities(
        self, pictures: Sequence[Image], questions: Sequence[str]
    ) -> list[tuple[float, float]]:
        """(P(yes), P(no)) at the first token of the answer to each question about its picture."""
        probabilities: list[tuple[float, float]] = []
        for start in range(0, len(questions), self.batch_size):
            rows = slice(start, start + self.batch_size)
            logits = self._generate(questions[rows], pictures[rows], limit=1).logits[0]  # (B, V)
            logprobs = self.answer_logprobs(logits.double())
            probabilities += [(yes, no) for yes, no in logprobs.exp().tolist()]
        return probabilities

    def answer_logprobs(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) of an answer's first token -> log-probabilities (B, 2) of all tokens that say yes,
        and of all that say no."""
        import torch

        logprobs = logits.log_softmax(-1)
        return torch.stack([logprobs[:, ids].logsumexp(-1) for ids in (self.yes, self.no)], -1)

    def generate(
        self, questions: Sequence[str], pictures: Sequence[Image] | None, limit: int
    ) -> list[VlmAnswer]:
        """A text answer of at most `limit` tokens to each question, decoded greedily."""
        answers: list[VlmAnswer] = []
        ends = self._ends()
        for start in range(0, len(questions), self.batch_size):
            rows = slice(start, start + self.batch_size)
            out = self._generate(questions[rows], pictures and pictures[rows], limit)
            written = out.sequences[:, -len(out.logits) :].tolist()
            texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
            answers += [
                VlmAnswer(text, not set(row) & set(ends)) for text, row in zip(texts, written, strict=True)
            ]
        return answers

    def inputs(self, questions: Sequence[str], pictures: Sequence[Image] | None) -> dict[str, torch.Tensor]:
        """The model's inputs: ids (B, T) padded on the left, pixels in the processor's shape."""
        texts = [self._chat(question, pictures is not None) for question in questions]
        start = self.tokenizer.bos_token
        made = self.processor(
            text=texts,
            images=None if pictures is None else [[picture] for picture in pictures],
            padding=True,
            return_tensors="pt",
            add_special_tokens=not (start and texts[0].startswith(start)),  # the template has written it
        )
        inputs = dict(made)
        if "token_type_ids" not in inspect.signature(self.model.forward).parameters:
            inputs.pop("token_type_ids", None)  # generic tokenizers write it, and not all models take it
        weight = next(self.model.parameters())
        return {
            key: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }

    def _chat(self, question: str, with_picture: bool) -> str:
        """A user's turn in the model's own chat template. Raises BadInput for control tokens in it."""
        marks = {*self.tokenizer.all_special_tokens, str(getattr(self.processor, "image_token", ""))}
        # Short marks are skipped: some tokenizers have "!" as a special token.
        found = next((mark for mark in marks if len(mark) > 2 and mark in question), None)
        if found is not None:
            raise BadInput(
                f"a prompt holds {found}, which is a control token of vlm:{self.name}; leave it out"
            )
        content = [{"type": "image"}] * with_picture + [{"type": "text", "text": question}]
        thinks = "enable_thinking" in str(self.processor.chat_template)
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=False,
            **({"enable_thinking": False} if thinks else {}),  # the first token must be the answer
        )

    def _generate(self, questions: Sequence[str], pictures: Sequence[Image] | None, limit: int) -> Any:
        from transformers import GenerationConfig

        # The checkpoint's own settings (sampling, penalties) would change the answer: all are set here.
        own = self.model.generation_config
        plain = GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self._ends() or None,
            output_logits=True,
            return_dict_in_generate=True,
            cache_implementation=getattr(own, "cache_implementation", None),  # some models need their own
        )
        self.model.generation_config = plain
        try:
            with inference(self.model):
                inputs = self.inputs(questions, pictures)
                return self.model.generate(**inputs, generation_config=plain)
        finally:
            self.model.generation_config = own

    def _ends(self) -> list[int]:
        """Ids of the tokens that end a turn: the tokenizer's and those of the checkpoint's generation
        config."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        return sorted({end for end in (*ends, self.tokenizer.eos_token_id) if end is not None})

    def _check_sees(self) -> None:
        """Raises CheckpointError unless a picture reaches the model's inputs, padded on the left."""
        from PIL import Image as images_of

        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "left"
        try:
            if self._chat("", True) == self._chat("", False):
                raise self._unfit("its chat template has no place for a picture")
            picture = images_of.new("RGB", (64, 64), "grey")
            inputs = self.inputs(["?", "? ? ?"], [picture, picture])
        except CheckpointError:
            raise
        except Exception as error:  # templates and processors raise many types
            why = f"its processor takes no picture with a question: {first_line(error)}"
            raise self._unfit(why) from error
        config = self.model.config
        token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
        placed = token is None or bool((inputs["input_ids"] == token).any())
        if not placed or not any(value.is_floating_point() for value in inputs.values()):
            raise self._unfit("its processor makes no token for a picture")
        if not bool(inputs["attention_mask"][:, -1].all()):
            raise self._unfit("its processor cannot pad on the left")

    def _unfit(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder} cannot judge pictures: {why}; take a chat model that reads pictures, "
            "such as Qwen2.5-VL, LLaVA-OneVision or SmolVLM"
        )


def answer_tokens(tokenizer: Any, word: str) -> list[int]:
    """Ids of the tokens that are `word` and nothing else, in upper or lower case, with or without a space."""
    ids = (i for token, i in tokenizer.get_vocab().items() if word in token.casefold())
    return sorted(i for i in ids if tokenizer.decode([i]).strip().casefold() == word)


def check_model_folder(folder: Path) -> None:
    """Raises CheckpointError for a folder that holds no model of transformers."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no VLM: it has no config.json; give a Hugging Face model folder")


def load(folder: Path, dtype: torch.dtype | None) -> tuple[Any, Any]:
    """(processor, model) of a folder. `dtype` None keeps the stored one.

    Only safetensors are read, no code from the checkpoint is run, nothing is downloaded. Raises
    CheckpointError if it is no such model or lacks weights, Unsupported if transformers needs torchvision and
    it is not installed.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    check_model_folder(folder)
    check_folder(folder)
    local = {"trust_remote_code": False, "local_files_only": True}
    try:
        with quiet_loading():
            config = AutoConfig.from_pretrained(folder, **local)
            if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
                raise CheckpointError(
                    f"{folder} is a model of type {config.model_type!r}, which this transformers "
                    "does not know as one that reads pictures and writes text; take another model"
                )
            processor: Any = AutoProcessor.from_pretrained(folder, **local)
            # `torch_dtype` works in all versions; `dtype`, its new name, only since 4.56.
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                folder, use_safetensors=True, torch_dtype=dtype or "auto", output_loading_info=True, **local
            )
            model, info = loaded
    except CheckpointError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors raise many types
        if isinstance(error, ImportError) and "torchvision" in str(error).casefold():
            raise Unsupported(
                f"transformers prepares pictures for {folder} with torchvision, which is not "
                "installed; install it (pip install torchvision)"
            ) from error
        raise CheckpointError(f"cannot load the VLM {folder}: {first_line(error)}; fetch it again") from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise CheckpointError(
            f"{folder} holds no image processor beside its tokenizer; fetch it again "
            "with preprocessor_config.json and processor_config.json"
        )
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if lacking:
        raise CheckpointError(
            f"the VLM {folder} lacks {len(lacking)} of its weights or has them in another "
            f"shape (first: {lacking[0]}); fetch it again"
        )
    return processor, model.eval().requires_grad_(False)
