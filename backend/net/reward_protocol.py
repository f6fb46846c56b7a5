"""The messages of a reward server and its clients: JSON over HTTP.

    GET  /rewards                    -> Catalogue
    POST /score       ScoreRequest   -> ScoreResponse
    POST /criticize   ScoreRequest   -> CritiqueResponse

Pictures travel as base64 of a PNG (8 bits a channel, lossless) or a JPEG. A single picture may also be the
body itself: POST /score?prompt=WORDS&reward=NAME with Content-Type: image/png or image/jpeg. No format that
runs code when it is read is accepted. An error of one reward comes beside the results of the others.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    PositiveInt,
    model_validator,
)

from ..core.errors import BadInput, RepriseError, RewardFailed, Unsupported
from ..core.types import RewardSpec, Verdict

LONGEST_PROMPT = 8_000  # characters, as on the command line
LONGEST_NAME = 200
LONGEST_ERROR = 600
MAX_ENTRIES = 4096  # entries of a list, whatever a server's own limits are


class _Message(BaseModel):
    """Strict: "0.5" and true are no numbers. Fields that a newer server adds to an answer are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)


class Limits(_Message):
    """The most that a server takes in one request."""

    images: PositiveInt = 64
    pixels: PositiveInt = 2**25  # of all its pictures together; 32 of 1024 x 1024
    body: PositiveInt = 64 * 2**20  # bytes


# Base64 in JSON. Pydantic's own encoder takes the alphabet of URLs; its decoder reads both.
Picture = Annotated[bytes, PlainSerializer(lambda data: base64.b64encode(data).decode(), when_used="json")]


class ScoreRequest(_Message):
    """Pictures, the users' prompts (one each) and the names of the rewards."""

    model_config = ConfigDict(extra="forbid", val_json_bytes="base64")

    images: Annotated[list[Picture], Field(min_length=1, max_length=MAX_ENTRIES)]
    prompts: Annotated[list[Annotated[str, Field(max_length=LONGEST_PROMPT)]], Field(max_length=MAX_ENTRIES)]
    rewards: Annotated[
        list[Annotated[str, Field(max_length=LONGEST_NAME)]], Field(min_length=1, max_length=MAX_ENTRIES)
    ]

    @model_validator(mode="after")
    def _a_prompt_each(self) -> ScoreRequest:
        if len(self.images) != len(self.prompts):
            raise ValueError(
                f"expected one prompt per picture, got {len(self.prompts)} for {len(self.images)}"
            )
        return self


class RewardInfo(_Message):
    """A reward as it is served: its `RewardSpec`, and whether it can say what is wrong."""

    name: str
    low: FiniteFloat
    high: FiniteFloat
    higher_is_better: bool
    reads: str
    critic: bool

    @model_validator(mode="after")
    def _a_range(self) -> RewardInfo:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got {self.low} and {self.high}")
        return self

    @property
    def spec(self) -> RewardSpec:
        return RewardSpec(self.name, self.low, self.high, self.higher_is_better, self.reads)


class Catalogue(_Message):
    """A server's rewards and limits."""

    rewards: list[RewardInfo]
    limits: Limits


class RewardError(_Message):
    """Why a reward gave no answer: `input` where the pictures or prompts are to blame, else `reward`."""

    blame: Literal["input", "reward"]
    message: str

    @classmethod
    def of(cls, error: RepriseError) -> RewardError:
        wrong = isinstance(error, (BadInput, Unsupported))
        words = str(error.cause if isinstance(error, RewardFailed) else error)  # the client names the reward
        return cls(blame="input" if wrong else "reward", message=" ".join(words.split())[:LONGEST_ERROR])


class ScoreResponse(_Message):
    """By reward: a score per picture, or why there is none."""

    scores: Mapping[str, list[FiniteFloat]]
    errors: Mapping[str, RewardError]


class VerdictMessage(_Message):
    """A `Verdict` on one picture."""

    satisfied: bool
    critique: str
    faults: list[str]

    @classmethod
    def of(cls, verdict: Verdict) -> VerdictMessage:
        return cls(satisfied=verdict.satisfied, critique=verdict.critique, faults=list(verdict.faults))

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.satisfied, self.critique, tuple(self.faults))


class CritiqueResponse(_Message):
    """By reward: a verdict per picture, or why there is none."""

    verdicts: Mapping[str, list[VerdictMessage]]
    errors: Mapping[str, RewardError]
