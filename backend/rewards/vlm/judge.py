"""A vision-language model (VLM) as judge: a transformers model in a folder, or a model behind an endpoint.

On the command line it is vlm:FOLDER or vlm:MODEL@URL, optionally followed by #MODE. The modes:

- `match`, `clarity` and `potential` ask one question each; the score is P(yes).
- `critique` is `match` plus a critique in the model's own words. `reprise train judge` tunes models for it,
  and it is the default mode of their folders. Its scores are those of `match`, and it is recorded under the
  same name.
- `checklist` asks about each part of the prompt separately, and its critique names the missing ones.
- `score` reads the model's own grade.

Questions and their sources are in `questions.py`. For previews, `match` and `critique` judges ask `potential`
and `clarity` instead.

vlm:embedded is the tiny judge that comes with the package, vlm:embedded-base the same judge before tuning.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...core.errors import BadInput, CheckpointError, RewardFailed, UnknownName, first_line
from ...core.model_files import (
    EMBEDDED_WEIGHTS,
    embedded_models,
    folder_fingerprint,
    model_folders,
    user_path,
)
from ...core.parsing import parse_json
from ...core.types import RewardCapabilities, RewardSpec, Verdict
from ...storage.images import to_pil
from ..base import BaseReward, check_prompts
from ..published.files import PublishedFile, find
from .calibration import IDENTITY, Calibration
from .endpoint import EndpointVLM
from .local import LocalVLM, VlmAnswer, check_model_folder
from .questions import CRITIQUE, GRADE, PARTS, QUESTIONS, read_grade, read_parts, split_prompt

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

log = logging.getLogger(__name__)

MIN_SIDE = 32  # pixels; processors refuse a picture of 1 x N, or mistake its side for the channels
LIST_TOKENS, GRADE_TOKENS, CRITIQUE_TOKENS = 512, 64, 128  # token limits of a list of parts, grade, critique
SETTINGS, FINAL = "reprise.json", "final"  # the settings file of a tuned judge; the last folder of its path
TRAINED_MODES = (*QUESTIONS, "critique")  # modes that `reprise train judge` trains
FORM = "vlm:FOLDER or vlm:MODEL@URL, and #MODE after it if not match"


class VLM(Protocol):
    """A model that answers questions about RGB pictures of any size."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Changes when the answers may: a hash of the weights, or the endpoint's model and address."""
        ...

    @property
    def model(self) -> Any:
        """The nn.Module, which a host's memory manager may move; None if the model runs elsewhere."""

    def yes_probabilities(self, pictures: Sequence[Image], questions: Sequence[str]) -> list[float]:
        """P(yes) of each question about its picture, 0..1."""
        ...

    def generate(
        self, questions: Sequence[str], pictures: Sequence[Image] | None, limit: int
    ) -> list[VlmAnswer]:
        """A text answer of at most `limit` tokens to each question."""
        ...


@dataclass(frozen=True)
class TunedSettings:
    """What `reprise train judge` recorded in a model's folder; the defaults for other models."""

    questions: frozenset[str] | None = None  # those it was trained on; None: not tuned
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)  # by question
    prompts: frozenset[str] = frozenset()  # marks of the prompts it was trained on

    @property
    def mode(self) -> str:
        """The default mode."""
        return "critique" if self.questions and "critique" in self.questions else "match"

    def knows(self, question: str) -> bool:
        return self.questions is None or question in self.questions


class VLMJudge(BaseReward):
    """P(yes) of one question about each picture and its prompt: 0..1, higher is better.

    `tuned` may hold calibrations, which turn P(yes) into the frequency of yes and keep the ranking.
    """

    def __init__(self, vlm: VLM, mode: str = "match", tuned: TunedSettings | None = None):
        self.capabilities = RewardCapabilities(weights=vlm.model is not None)
        self.vlm, self.mode, self.model, self.tuned = vlm, mode, vlm.model, tuned or TunedSettings()
        suffix = "" if mode in ("match", "critique") else f"#{mode}"
        self.spec = RewardSpec(f"vlm:{vlm.name}{suffix}", 0.0, 1.0)

    @property
    def fingerprint(self) -> str:
        """Changes when the scores may."""
        return f"{self.vlm.fingerprint} {self.mode}"

    def preview_judge(self) -> VLMJudge:
        """The judge for previews. A preview cannot match the prompt yet, so `match` and `critique` become
        `potential`; other modes, and models tuned without that question, judge previews themselves."""
        if self.mode in ("match", "critique") and self.tuned.knows("potential"):
            return VLMPotential(self.vlm, "potential", self.tuned)
        return self

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Images (B, H, W, 3) in 0..1 and the users' prompts -> B scores. See `interfaces.Reward`."""
        return self.rate(self._pictures(images, prompts), prompts)

    def rate(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        return self.ask(self.mode, pictures, prompts)

    def ask(self, question: str, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """Calibrated P(yes) of one of QUESTIONS about each picture (as `vlm_pictures` gives them), 0..1."""
        probabilities = self.vlm.yes_probabilities(
            pictures, [QUESTIONS[question].format(prompt.strip()) for prompt in prompts]
        )
        return list(map(self.tuned.calibrations.get(question, IDENTITY), probabilities))

    def critiques(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[str]:
        """What is wrong with each picture in the model's words, on one line; "" if it says nothing."""
        questions = [CRITIQUE.format(prompt.strip()) for prompt in prompts]
        answers = self.vlm.generate(questions, pictures, CRITIQUE_TOKENS) if questions else []
        return [" ".join(answer.text.split()) for answer in answers]

    def _pictures(self, images: Tensor, prompts: Sequence[str]) -> list[Image]:
        check_prompts(self.spec.name, images, prompts)
        return vlm_pictures(images)


def split_faults(critique: str) -> tuple[str, ...]:
    """The faults that a critique names, separated by semicolons."""
    return tuple(part.strip() for part in critique.split(";") if part.strip())


class VLMPotential(VLMJudge):
    """P(yes) of `potential` for previews. Also gives their clarity."""

    def clarity(self, images: Tensor, prompts: Sequence[str]) -> list[float] | None:
        """See `interfaces.PreviewReward`."""
        if not self.tuned.knows("clarity"):
            return None
        return self.ask("clarity", self._pictures(images, prompts), prompts)


class VLMCritic(VLMJudge):
    """P(yes) of `match`; for pictures below one half the model says what is wrong."""

    def rate(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        return self.ask("match", pictures, prompts)

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        """A verdict per picture; its faults are the model's critique, split at semicolons.

        Raises RewardFailed if the model says nothing about a picture that does not match.
        """
        pictures = self._pictures(images, prompts)
        wrong = [i for i, p in enumerate(self.rate(pictures, prompts)) if p < 0.5]
        critiques = self.critiques([pictures[i] for i in wrong], [prompts[i] for i in wrong])
        verdicts = [Verdict(True, "")] * len(pictures)
        for i, critique in zip(wrong, critiques, strict=True):
            if not critique:
                raise RewardFailed(
                    self.spec.name, "it finds a picture wrong and does not say why; take #checklist"
                )
            verdicts[i] = Verdict(False, critique, split_faults(critique))
        return verdicts


class VLMGrade(VLMJudge):
    """The model's grade of 0 to 10, divided by 10: 0..1, higher is better. Coarse: models use few numbers."""

    def rate(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        answers = self.vlm.generate([GRADE.format(p.strip()) for p in prompts], pictures, GRADE_TOKENS)
        return [self._grade(answer.text) / 10 for answer in answers]

    def _grade(self, text: str) -> float:
        grade = read_grade(text)
        if grade is None:
            short = " ".join(text.split())[:80]
            raise RewardFailed(self.spec.name, f"expected a grade from 0 to 10, it answered {short!r}")
        return grade


class VLMChecklist(VLMJudge):
    """The product of P(yes) over the parts of the prompt: 0..1, higher is better. More parts, lower scores.

    The model lists the parts itself, once per prompt. If it writes no list, rules split the prompt.
    """

    def __init__(self, vlm: VLM, mode: str = "checklist", tuned: TunedSettings | None = None):
        super().__init__(vlm, mode)  # not calibrated: the calibration of `match` holds for whole prompts
        self._parts: dict[str, tuple[str, ...]] = {}

    def parts(self, prompt: str) -> tuple[str, ...]:
        """The parts of `prompt` as phrases; at least one."""
        prompt = prompt.strip()
        if prompt not in self._parts:
            (answer,) = self.vlm.generate([PARTS.format(prompt)], None, LIST_TOKENS)
            listed = () if answer.truncated else read_parts(answer.text, prompt)
            if not listed:
                log.warning("%s wrote no list of what %r asks for; rules split it", self.spec.name, prompt)
            self._parts[prompt] = listed or split_prompt(prompt)
        return self._parts[prompt]

    def rate(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        return [math.prod(p for _, p in row) for row in self._part_probabilities(pictures, prompts)]

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        """The parts that each picture does not show; satisfied if it shows all."""
        verdicts = []
        for row in self._part_probabilities(self._pictures(images, prompts), prompts):
            faults = tuple(f"it does not show {part}" for part, p in row if p < 0.5)
            verdicts.append(Verdict(not faults, "; ".join(faults), faults))
        return verdicts

    def _part_probabilities(
        self, pictures: Sequence[Image], prompts: Sequence[str]
    ) -> list[list[tuple[str, float]]]:
        """[(part, P(yes)), …] for each picture; all questions go to the model in one call."""
        rows = [self.parts(prompt) for prompt in prompts]
        repeated = [picture for picture, row in zip(pictures, rows, strict=True) for _ in row]
        questions = [QUESTIONS["match"].format(part) for row in rows for part in row]
        probabilities = iter(self.vlm.yes_probabilities(repeated, questions))
        return [[(part, next(probabilities)) for part in row] for row in rows]


MODES: dict[str, type[VLMJudge]] = {
    "match": VLMJudge,
    "clarity": VLMJudge,
    "potential": VLMPotential,
    "critique": VLMCritic,
    "checklist": VLMChecklist,
    "score": VLMGrade,
}


def vlm_judge(
    source: str = "", *, device: str | None = None, dtype: str | None = None, batch_size: int = 8
) -> VLMJudge:
    """The judge that `source` names: FOLDER or MODEL@URL, optionally followed by #MODE.

    FOLDER may also be "embedded", a name under models/reprise/judges, or "owner/model" in Hugging Face's
    cache. The keyword arguments apply to folders only. Raises BadInput, UnknownName, CheckpointError.
    """
    where, mode = parse_source(source)
    model, at, url = where.rpartition("@http")
    if at:
        return MODES[mode or "match"](EndpointVLM("http" + url, model), mode or "match")
    folder = find_folder(where)
    tuned = read_tuned(folder)
    if mode is None:
        mode = tuned.mode
    elif mode in TRAINED_MODES and not tuned.knows(mode):
        log.warning("%s was not trained on %r; its answers may mean little", folder, mode)
    vlm = LocalVLM(folder, name=_name(where, folder), device=device, dtype=dtype, batch_size=batch_size)
    return MODES[mode](vlm, mode, tuned)


def parse_source(source: str) -> tuple[str, str | None]:
    """(folder, name or MODEL@URL; mode or None). Raises BadInput and UnknownName."""
    where, hashed, mode = source.rpartition("#")
    if not hashed:
        where, mode = source, ""
    elif mode not in MODES:
        raise UnknownName("mode of a VLM judge", mode, MODES)
    if not where.strip():
        raise BadInput(f"the judge vlm names no model; give {FORM}")
    model, at, _ = where.rpartition("@http")
    if at and not model.strip():
        raise BadInput(f"vlm:{where[:80]} names no model before its address; give {FORM}")
    return where, mode or None


def fingerprint_of(source: str) -> str:
    """The fingerprint of the judge that `source` names, without loading its weights. Raises as
    `vlm_judge`."""
    where, mode = parse_source(source)
    if "@http" in where:
        return f"{where} {mode or 'match'}"
    folder = find_folder(where)
    check_model_folder(folder)  # or a whole disk would be hashed
    return f"{folder_fingerprint(folder)} {mode or read_tuned(folder).mode}"


def _name(where: str, folder: Path) -> str:
    """The judge's name: the folder's, or the run's if the folder is a run's `final`."""
    name = Path(where).name
    return folder.resolve().parent.name if name == FINAL else name


def read_tuned(folder: Path) -> TunedSettings:
    """The settings that `reprise train judge` wrote into a folder, or the defaults. Raises
    CheckpointError."""
    path = folder / SETTINGS
    if not path.is_file():
        return TunedSettings()
    try:
        settings = parse_json(path.read_bytes())
        questions = settings.get("questions")
        calibrations = {
            str(name): Calibration(float(one["temperature"]), float(one["bias"]))
            for name, one in settings.get("calibration", {}).items()
        }
        if not all(one.in_range for one in calibrations.values()) or calibrations.keys() - QUESTIONS:
            raise ValueError("an impossible calibration")
        prompts = frozenset(map(str, settings.get("prompts", ())))
        return TunedSettings(
            None if questions is None else frozenset(map(str, questions)), calibrations, prompts
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is damaged ({first_line(error)}); take the folder as it was saved, or "
            "delete the file to judge without calibration"
        ) from error


def embedded_judges() -> dict[str, Path]:
    """{name: folder} of the judges that come with the package."""
    folders = {"embedded": EMBEDDED_WEIGHTS / "judge", **embedded_models("judges")}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def find_folder(where: str) -> Path:
    """The folder of a judge: a path, an embedded judge's name, an installed judge's name, or "owner/model" in
    Hugging Face's cache. Raises CheckpointError."""
    folder = user_path(where)
    if os.path.isdir(folder):
        return folder
    if embedded := embedded_judges().get(where):
        return embedded
    repo = where if re.fullmatch(r"[\w.-]+/[\w.-]+", where) else ""
    config = find(PublishedFile(where, "config.json", 0, repo))
    if config is None:
        places = f"in {model_folders()[0] / 'judges'} or in Hugging Face's cache"
        fetch = f"run `hf download {where}`" if repo else f"give {FORM}"
        raise CheckpointError(f"there is no folder {where}, and no model of that name {places}; {fetch}")
    return config.parent


def vlm_pictures(images: Tensor) -> list[Image]:
    """Images (B, H, W, 3) in 0..1 -> PIL pictures for a VLM, none with a side below MIN_SIDE."""
    return [_enlarged(picture) for picture in to_pil(images)]


def _enlarged(picture: Image) -> Image:
    """The picture, stretched if a side is below MIN_SIDE."""
    width, height = (max(side, MIN_SIDE) for side in picture.size)
    return picture if (width, height) == picture.size else picture.resize((width, height))
