"""A vision-language model as judge: any that transformers knows, in a folder, or one behind an endpoint.

Named on the command line as vlm:FOLDER, vlm:MODEL@URL, each with #MODE after it. Modes: `match`, `clarity`
and `potential` are one question each; `critique` is `match` that can say what is wrong in the model's own
words, as one does that `reprise train judge` has tuned, and the mode of such a folder where none is given:
its scores are those of `match`, and so is its name on record;
`checklist` asks for each part of the prompt by itself and can say which are missing; `score` takes the
model's own grade. Words and sources in `vlm_questions`. Previews are looked at by `potential` and `clarity`
in the place of `match` and `critique`.

vlm:embedded is the tiny judge that comes with the package, vlm:embedded-base the same before it was tuned.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...core.errors import BadInput, CheckpointError, RewardFailed, UnknownName, first_line
from ...core.model_files import EMBEDDED_WEIGHTS, embedded_models, folder_fingerprint, model_folders
from ...core.types import RewardSpec, Verdict
from ...storage.images import to_pil
from ..base import check_prompts
from ..published.files import PublishedFile, find
from .calibration import PLAIN, Calibration
from .endpoint import EndpointVLM
from .local import LocalVLM, VlmAnswer
from .questions import CRITIQUE, GRADE, PARTS, QUESTIONS, read_grade, read_parts, split

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

log = logging.getLogger(__name__)

SMALLEST = 32  # pixels of a side: processors take a picture of 1 x N for channels, or refuse it
LIST_TOKENS, GRADE_TOKENS, REASON_TOKENS = 512, 64, 128  # most that parts, a grade and a reason may take
SETTINGS, FINAL = "reprise.json", "final"  # of a judge that was tuned here
ASKED = (*QUESTIONS, "critique")  # modes that `reprise train judge` trains
FORM = "vlm:FOLDER or vlm:MODEL@URL, and #MODE after it if not match"


class VLM(Protocol):
    """What answers questions about RGB pictures of any size."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """What decides its answers: of weights, or of where they are asked for."""
        ...

    @property
    def model(self) -> Any:
        """The nn.Module that a host's memory manager may move, None where it runs elsewhere."""

    def agree(self, pictures: Sequence[Image], questions: Sequence[str]) -> list[float]:
        """P(yes) to each question about its picture, 0..1."""
        ...

    def write(
        self, questions: Sequence[str], pictures: Sequence[Image] | None, limit: int
    ) -> list[VlmAnswer]:
        """An answer in words of `limit` tokens at most to each question."""
        ...


@dataclass(frozen=True)
class TunedSettings:
    """What `reprise train judge` says of a folder; of a model from elsewhere, nothing."""

    questions: frozenset[str] | None = None  # that it was trained on
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    prompts: frozenset[str] = frozenset()  # marks of those that it has seen

    @property
    def mode(self) -> str:
        """Which one it is used in where none is given."""
        return "critique" if self.questions and "critique" in self.questions else "match"

    def knows(self, question: str) -> bool:
        return self.questions is None or question in self.questions


class VLMJudge:
    """P(yes) to one question about each picture and its prompt: 0..1, higher is better. `tuned` has the
    calibrations that make it how often the answer is yes; the order is the same without."""

    def __init__(self, vlm: VLM, mode: str = "match", tuned: TunedSettings | None = None):
        self.vlm, self.mode, self.model, self.tuned = vlm, mode, vlm.model, tuned or TunedSettings()
        asked = "" if mode in ("match", "critique") else f"#{mode}"
        self.spec = RewardSpec(f"vlm:{vlm.name}{asked}", 0.0, 1.0)

    @property
    def fingerprint(self) -> str:
        """What decides the scores."""
        return f"{self.vlm.fingerprint} {self.mode}"

    def of_previews(self) -> VLMJudge:
        """Who looks at previews in its place: itself, but where it asks whether a picture matches, which a
        preview cannot yet; not of a model that was tuned for other questions alone."""
        if self.mode in ("match", "critique") and self.tuned.knows("potential"):
            return VLMPotential(self.vlm, "potential", self.tuned)
        return self

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Images (B, H, W, 3) in 0..1 and the users' prompts -> B scores. See `interfaces.Reward`."""
        return self.rate(self._pictures(images, prompts), prompts)

    def rate(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        return self.ask(self.mode, pictures, prompts)

    def ask(self, question: str, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """P(yes) to one of QUESTIONS about each of some pictures, as `shown` gives them."""
        likely = self.vlm.agree(pictures, [QUESTIONS[question].format(prompt.strip()) for prompt in prompts])
        return list(map(self.tuned.calibrations.get(question, PLAIN), likely))

    def reasons(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[str]:
        """What is wrong with each of some pictures, in the model's words; "" where it has none."""
        asked = [CRITIQUE.format(prompt.strip()) for prompt in prompts]
        said = self.vlm.write(asked, pictures, REASON_TOKENS) if asked else []
        return [" ".join(one.text.split()) for one in said]

    def _pictures(self, images: Tensor, prompts: Sequence[str]) -> list[Image]:
        check_prompts(self.spec.name, images, prompts)
        return shown(images)


def split_faults(reason: str) -> tuple[str, ...]:
    """The faults that a reason names, which semicolons part."""
    return tuple(part.strip() for part in reason.split(";") if part.strip())


class VLMPotential(VLMJudge):
    """P(yes) to `potential`, of previews; it can tell which of them are clear."""

    def clarity(self, images: Tensor, prompts: Sequence[str]) -> list[float] | None:
        """See `interfaces.PreviewReward`."""
        if not self.tuned.knows("clarity"):
            return None
        return self.ask("clarity", self._pictures(images, prompts), prompts)


class VLMCritic(VLMJudge):
    """P(yes) to `match`; where that is below one half, the model says what is wrong."""

    def rate(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        return self.ask("match", pictures, prompts)

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        """A reason, split at semicolons, for each picture that does not match. Raises RewardFailed where the
        model says nothing."""
        pictures = self._pictures(images, prompts)
        wrong = [i for i, p in enumerate(self.rate(pictures, prompts)) if p < 0.5]
        said = self.reasons([pictures[i] for i in wrong], [prompts[i] for i in wrong])
        found = [Verdict(True, "")] * len(pictures)
        for i, reason in zip(wrong, said, strict=True):
            if not reason:
                raise RewardFailed(
                    self.spec.name, "it finds a picture wrong and says no word about it; take #checklist"
                )
            found[i] = Verdict(False, reason, split_faults(reason))
        return found


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

    def __init__(self, vlm: VLM, mode: str = "checklist", tuned: TunedSettings | None = None):
        super().__init__(vlm, mode)  # the calibration of `match` is that of whole prompts
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
    "potential": VLMPotential,
    "critique": VLMCritic,
    "checklist": VLMChecklist,
    "score": VLMGrade,
}


def vlm_judge(
    source: str = "", *, device: str | None = None, dtype: str | None = None, batch_size: int = 8
) -> VLMJudge:
    """The judge that `source` names: FOLDER (or embedded, its name under models/reprise/judges, or
    "owner/model" in Hugging Face's cache) or MODEL@URL, each with #MODE after it. The options are for a
    folder.

    Raises BadInput, UnknownName, CheckpointError.
    """
    where, mode = parse_source(source)
    model, at, url = where.rpartition("@http")
    if at:
        return MODES[mode or "match"](EndpointVLM("http" + url, model), mode or "match")
    folder = find_folder(where)
    tuned = read_tuned(folder)
    if mode is None:
        mode = tuned.mode
    elif mode in ASKED and not tuned.knows(mode):
        log.warning("%s was not trained on %r; what it answers may mean little", folder, mode)
    made = LocalVLM(folder, name=_name(where, folder), device=device, dtype=dtype, batch_size=batch_size)
    return MODES[mode](made, mode, tuned)


def parse_source(source: str) -> tuple[str, str | None]:
    """(folder, name or MODEL@URL; mode, None where none is given). Raises BadInput and UnknownName."""
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
    """What decides the scores of the judge that `source` names, without loading it. Raises as `vlm_judge`."""
    where, mode = parse_source(source)
    if "@http" in where:
        return f"{where} {mode or 'match'}"
    folder = find_folder(where)
    return f"{folder_fingerprint(folder)} {mode or read_tuned(folder).mode}"


def _name(where: str, folder: Path) -> str:
    """A run's `final` is called as the run is: all runs have one."""
    name = Path(where).name
    return folder.resolve().parent.name if name == FINAL else name


def read_tuned(folder: Path) -> TunedSettings:
    """What `reprise train judge` left in a folder. Raises CheckpointError."""
    path = folder / SETTINGS
    if not path.is_file():
        return TunedSettings()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        questions = kept.get("questions")
        found = {
            str(name): Calibration(float(one["temperature"]), float(one["bias"]))
            for name, one in kept.get("calibration", {}).items()
        }
        if not all(one.possible for one in found.values()) or found.keys() - QUESTIONS:
            raise ValueError("a calibration that cannot be")
        prompts = frozenset(map(str, kept.get("prompts", ())))
        return TunedSettings(None if questions is None else frozenset(map(str, questions)), found, prompts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({first_line(error)}); take the folder as it was saved, or "
            "delete the file to judge without calibration"
        ) from error


def embedded_judges() -> dict[str, Path]:
    """Those that come with the package: name -> folder."""
    found = {"embedded": EMBEDDED_WEIGHTS / "judge", **embedded_models("judges")}
    return {name: folder for name, folder in found.items() if folder.is_dir()}


def find_folder(where: str) -> Path:
    """A folder as it is given, an embedded one, one of that name among the installed judges, or "owner/model"
    in Hugging Face's cache."""
    given = Path(where).expanduser()
    if given.is_dir():
        return given
    if own := embedded_judges().get(where):
        return own
    repo = where if re.fullmatch(r"[\w.-]+/[\w.-]+", where) else ""
    config = find(PublishedFile(where, "config.json", 0, repo))
    if config is None:
        places = f"in {model_folders()[0] / 'judges'} or in Hugging Face's cache"
        fetch = f"run `hf download {where}`" if repo else f"give {FORM}"
        raise CheckpointError(f"there is no folder {where}, and no model of that name {places}; {fetch}")
    return config.parent


def shown(images: Tensor) -> list[Image]:
    """Images (B, H, W, 3) in 0..1 as a VLM is shown them."""
    return [_enlarged(picture) for picture in to_pil(images)]


def _enlarged(picture: Image) -> Image:
    """A picture with no side below SMALLEST."""
    width, height = (max(side, SMALLEST) for side in picture.size)
    return picture if (width, height) == picture.size else picture.resize((width, height))
