import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.core.registry import REWRITERS, resolve
from reprise.backend.core.types import Rewrite


def test_none_keeps_the_prompt_unchanged():
    keep = resolve("rewriter", REWRITERS, "none")()
    assert keep.rewrite([" a  cat\n", "b"], variants=2) == [
        [Rewrite("", " a  cat\n", "none")] * 2,
        [Rewrite("", "b", "none")] * 2,
    ]


def test_template_appends_quality_words_to_the_prompt():
    template = resolve("rewriter", REWRITERS, "template")()
    [[rewrite]] = template.rewrite(["a photo of\na cat."], seed=3, critiques=["no cat"])
    assert rewrite.prompt == "a photo of a cat, highly detailed, sharp focus, clean simple background"
    assert rewrite.fallback is None


@pytest.mark.parametrize("name", ["none", "template"])
def test_bad_input(name):
    rewriter = resolve("rewriter", REWRITERS, name)()
    with pytest.raises(BadInput, match="empty"):
        rewriter.rewrite(["a cat", " "])
    with pytest.raises(BadInput, match="variant"):
        rewriter.rewrite(["a cat"], variants=0)
