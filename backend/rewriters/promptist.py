"""Promptist: a causal language model that continues "PROMPT Rephrase:" with the rewritten prompt.

Source: Promptist (Hao et al. 2022, arXiv 2212.09611) and its demo (hf.co/spaces/microsoft/Promptist): 8
beams, length penalty -1, at most 75 tokens; the request is removed from the answer, and surrounding
whitespace is stripped.
Departs from it: further variants are sampled, as in all rewriters here.

A model trained in this format is one of PRIP's baselines. The published weights are a pickle without a
tokenizer: save them as safetensors, with GPT-2's tokenizer in the same folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from ..core.types import Rewrite, RewriterCapabilities
from .decoding import CausalLMRewriter, Completion
from .prompting import control_tokens
from .reprompt import load_checkpoint
from .rows import keep_prompt

SUFFIX = " Rephrase:"


class PromptistRewriter(CausalLMRewriter):
    """Gives no reason. A critique changes only the noise of the sampled variants."""

    name = "promptist"
    capabilities = RewriterCapabilities(reads_critiques=False, reasons=False, weights=True)

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        *,
        device: str | None = None,
        dtype: str | None = None,
        max_new_tokens: int = 75,
        temperature: float = 1.0,
        top_p: float = 1.0,
        beams: int = 8,
        length_penalty: float = -1.0,
        batch_size: int = 4,
    ):
        """`model`: a folder or Hugging Face name, or a pair (model, tokenizer). `dtype` as for RePrompt.

        `batch_size` counts rows; each row has `beams` beams. Raises CheckpointError and BadInput.
        """
        import torch

        if isinstance(model, tuple):
            self.model, self.tokenizer = model
        else:
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            self.model, self.tokenizer, _ = load_checkpoint(str(model), device, dtype)
        self.model.eval()
        self.max_new_tokens, self.temperature, self.top_p = max_new_tokens, temperature, top_p
        self.beams, self.length_penalty, self.batch_size = beams, length_penalty, batch_size
        self.check_settings()

    def encode_request(self, prompt: str, critique: str | None) -> list[int]:
        if not prompt.strip():
            raise BadInput("the prompt is empty; write a few words that say what the picture shows")
        for token in control_tokens(self.tokenizer):
            prompt = prompt.replace(token, " ")
        return self.tokenizer(prompt.strip() + SUFFIX, verbose=False)["input_ids"]

    def to_rewrite(self, completion: Completion, prompt: str) -> Rewrite:
        text = " ".join(completion.text.replace(prompt.strip() + SUFFIX, "").split())
        if not any(letter.isalnum() for letter in text):
            return keep_prompt(prompt, self.name, "the answer holds no words")
        return Rewrite("", text, self.name)

    def _settings(self) -> list[Any]:
        return list(vars(self.decoding).values())
