"""Two baselines without a model: the prompt unchanged, and the prompt with quality words appended.

A trained rewriter must beat both. The quality words are the usual ones from prompt guides and do not depend
on the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import BadInput
from ..core.types import Rewrite, RewriterCapabilities

QUALITY_WORDS = "highly detailed, sharp focus, clean simple background"


class KeepPrompt:
    """The user's prompt, unchanged."""

    name = "none"
    fingerprint = None
    capabilities = RewriterCapabilities(reads_critiques=False, reasons=False)

    def rewrite(
        self,
        prompts: Sequence[str],
        variants: int = 1,
        seed: int = 0,
        critiques: Sequence[str | None] | None = None,
    ) -> list[list[Rewrite]]:
        """The prompt itself, `variants` times. `seed` and `critiques` are ignored."""
        _check(prompts, variants)
        return [[Rewrite("", prompt, self.name)] * variants for prompt in prompts]


class TemplateRewriter:
    """The prompt, a comma, and the quality words `words`."""

    name = "template"
    fingerprint = None
    capabilities = RewriterCapabilities(reads_critiques=False, reasons=False)

    def __init__(self, words: str = QUALITY_WORDS):
        self.words = words

    def rewrite(
        self,
        prompts: Sequence[str],
        variants: int = 1,
        seed: int = 0,
        critiques: Sequence[str | None] | None = None,
    ) -> list[list[Rewrite]]:
        """The same text `variants` times. `seed` and `critiques` are ignored."""
        _check(prompts, variants)
        texts = (" ".join(prompt.split()).rstrip(" .,;") for prompt in prompts)
        return [[Rewrite("", f"{text}, {self.words}", self.name)] * variants for text in texts]


def _check(prompts: Sequence[str], variants: int) -> None:
    if variants < 1:
        raise BadInput(f"expected at least 1 variant of a rewrite, got {variants}")
    if not all(prompt.strip() for prompt in prompts):
        raise BadInput("the prompt is empty; write a few words that say what the picture shows")
