"""A vision-language model as judge: any that transformers knows, in a folder, or one behind an endpoint.

Named on the command line as vlm:FOLDER, vlm:MODEL@URL, each with #MODE after it. Modes: `match`, `clarity`
and `potential` are one question each; `checklist` asks for each part of the prompt by itself and can say
which are missing; `score` takes the model's own grade. Words and sources in `vlm_questions`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import BadInput, CheckpointError, RewardFailed, UnknownName
from ..loading import model_folders
from ..types import RewardSpec, Verdict
from .files import Wanted, find
from .judge import check_asked
from .pictures import to_pil
from .vlm_endpoint import EndpointVLM
from .vlm_local import LocalVLM, Said
from .vlm_questions import GRADE, PARTS, QUESTIONS, read_grade, read_parts, split

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

log = logging.getLogger(__name__)

SMALLEST = 32  # pixels of a side: processors take a picture of 1 x N for channels, or refuse it
LIST_TOKENS, GRADE_TOKENS = 512, 64  # most that a list of parts and a grade may take
FORM = "vlm:FOLDER or vlm:MODEL@URL, and #MODE after it if not match"


class VLM(Protocol):
    """What answers questions about RGB pictures of any size."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> Any:
        """The nn.Module that a host's memory manager may move, None where it runs elsewhere."""

    def agree(self, pictures: Sequence[Image], questions: Sequence[str]) -> list[float]:
        """P(yes) to each question about its picture, 0..1."""
        ...

    def write(self, questions: Sequence[str], pictures: Sequence[Image] | None, limit: int) -> list[Said]:
        """An answer in words of `limit` tokens at most to each question."""
        ...


class VLMJudge:
    """P(yes) to one question about each picture and its prompt: 0..1, higher is better."""

    def __init__(self, vlm: VLM, mode: str = "match"):
        self.vlm, self.mode, self.model = vlm, mode, vlm.model
        self.spec = RewardSpec(f"vlm:{vlm.name}" + (f"#{mode}" if mode != "match" else ""), 0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Images (B, H, W, 3) in 0..1 and the users' prompts -> B scores. See `interfaces.Reward`."""
        return self.rate(self._pictures(images, prompts), prompts)

    def rate(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        return self.vlm.agree(pictures, [QUESTIONS[self.mode].format(prompt.strip()) for prompt in prompts])

    def _pictures(self, images: Tensor, prompts: Sequence[str]) -> list[Image]:
        check_asked(self.spec.name, images, prompts)
        return [_enlarged(picture) for picture in to_pil(images)]


class VLMGrade(VLMJudge):
    """The model's grade of 0 to 10, as 0..1, higher is better. Coarse: most models use few numbers."""

    def rate(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        answers = self.vlm.write([GRADE.format(p.strip()) for p in prompts], pictures, GRADE_TOKENS)
        return [self._grade(said.text) / 10 for said in answers]

    def _grade(self, text: str) -> float:
        grade = read_grade(text)
        if grade is None:
            said = " ".join(text.split())[:80]
            raise RewardFailed(self.spec.name, f"expected a grade from 0 to 10, it answered {said!r}")
        return grade


class VLMChecklist(VLMJudge):
    """The product of P(yes) over the parts of the prompt: 0..1, higher is better; more parts, lower scores.

    The model lists the parts itself, once for each prompt; where it writes no list, rules split the prompt.
    """

    def __init__(self, vlm: VLM, mode: str = "checklist"):
        super().__init__(vlm, mode)
        self._parts: dict[str, tuple[str, ...]] = {}

    def parts(self, prompt: str) -> tuple[str, ...]:
        """What `prompt` asks for, as phrases; never none."""
        prompt = prompt.strip()
        if prompt not in self._parts:
            (said,) = self.vlm.write([PARTS.format(prompt)], None, LIST_TOKENS)
            listed = () if said.cut else read_parts(said.text, prompt)
            if not listed:
                log.warning("%s wrote no list of what %r asks for; rules split it", self.spec.name, prompt)
            self._parts[prompt] = listed or split(prompt)
        return self._parts[prompt]

    def rate(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        return [math.prod(p for _, p in row) for row in self._asked(pictures, prompts)]

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        """Which parts are not seen in each picture; satisfied where all are."""
        verdicts = []
        for row in self._asked(self._pictures(images, prompts), prompts):
            faults = tuple(f"it does not show {part}" for part, p in row if p < 0.5)
            verdicts.append(Verdict(not faults, "; ".join(faults), faults))
        return verdicts

    def _asked(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[list[tuple[str, float]]]:
        """(part, P(yes)) of each picture, all asked together."""
        rows = [self.parts(prompt) for prompt in prompts]
        seen = [picture for picture, row in zip(pictures, rows, strict=True) for _ in row]
        questions = [QUESTIONS["match"].format(part) for row in rows for part in row]
        answers = iter(self.vlm.agree(seen, questions))
        return [[(part, next(answers)) for part in row] for row in rows]


MODES: dict[str, type[VLMJudge]] = {
    "match": VLMJudge,
    "clarity": VLMJudge,
    "potential": VLMJudge,
    "checklist": VLMChecklist,
    "score": VLMGrade,
}


def vlm_judge(source: str = "", *, device: str | None = None, dtype: str | None = None,
              batch_size: int = 8) -> VLMJudge:  # fmt: skip
    """The judge that `source` names: FOLDER (or its name under models/reprise/judges, or "owner/model" in
    Hugging Face's cache) or MODEL@URL, each with #MODE after it. The options are for a folder.

    Raises BadInput, UnknownName, CheckpointError.
    """
    where, hashed, mode = source.rpartition("#")
    if not hashed:
        where, mode = source, "match"
    if mode not in MODES:
        raise UnknownName("mode of a VLM judge", mode, MODES)
    if not where.strip():
        raise BadInput(f"the judge vlm names no model; give {FORM}")
    model, at, url = where.rpartition("@http")
    if at:
        if not model.strip():
            raise BadInput(f"vlm:{where[:80]} names no model before its address; give {FORM}")
        return MODES[mode](EndpointVLM("http" + url, model), mode)
    folder, name = _folder(where), Path(where).name
    made = LocalVLM(folder, name=name, device=device, dtype=dtype, batch_size=batch_size)
    return MODES[mode](made, mode)


def _folder(where: str) -> Path:
    """A folder as it is given, or of that name among the installed judges, or "owner/model" in Hugging
    Face's cache."""
    given = Path(where).expanduser()
    if given.is_dir():
        return given
    repo = where if re.fullmatch(r"[\w.-]+/[\w.-]+", where) else ""
    config = find(Wanted(where, "config.json", 0, repo))
    if config is None:
        places = f"in {model_folders()[0] / 'judges'} or in Hugging Face's cache"
        fetch = f"run `hf download {where}`" if repo else f"give {FORM}"
        raise CheckpointError(f"there is no folder {where}, and no model of that name {places}; {fetch}")
    return config.parent


def _enlarged(picture: Image) -> Image:
    """A picture with no side below SMALLEST."""
    width, height = (max(side, SMALLEST) for side in picture.size)
    return picture if (width, height) == picture.size else picture.resize((width, height))
