"""A reward that another process or machine runs: the client of `reprise serve rewards`.

The judge there sees what it would see here: pictures go as PNG of 8 bits, to which the judges round anyway,
and each is scored by itself. A server that is away or full is tried again a few times. Its answers are
checked; no failure becomes a score of 0.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from ..core.config import parse_config, validation_message
from ..core.errors import BadInput, EndpointError, RewardFailed, UnknownName, plain
from ..core.types import Verdict
from ..net.background import run_in_thread
from ..net.credentials import REWARDS, check_url, find_key
from ..net.http import (
    QUOTED_CHARACTERS,
    FaultKind,
    HttpAnswer,
    HttpClient,
    HttpFault,
    count_tries,
)
from ..net.reward_protocol import (
    Catalogue,
    CritiqueResponse,
    RewardError,
    RewardInfo,
    ScoreRequest,
    ScoreResponse,
)
from ..storage.images import to_pil
from .base import BaseReward

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MOST_IMAGES = 16  # in one request, so that a slow judge answers within the timeout
ENVELOPE_BYTES = 512  # of a request around its pictures and prompts
MAX_ANSWER_BYTES = 4 * 2**20
ADDRESS_ADVICE = "give the address that `reprise serve rewards` says it listens at"
FAULT_ADVICE = {
    FaultKind.UNREACHABLE: "start it with `reprise serve rewards`, or correct the address",
    FaultKind.BROKEN_OFF: "its log may say why",
    FaultKind.TOO_SLOW: "its queue is long or its judge slow",
    FaultKind.TOO_LARGE: ADDRESS_ADVICE,
}
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


def connect(url: str, name: str, *, timeout: float = 300.0, retries: int = 4) -> RemoteReward:
    """The reward `name` of the server at `url`, a `RemoteCritic` where it can say what is wrong.

    `timeout`: seconds for one answer. Raises what `RewardClient` does, and UnknownName.
    """
    client = RewardClient(url, timeout, retries)
    info = client.find(name)
    return (RemoteCritic if info.critic else RemoteReward)(client, info)


class RemoteReward(BaseReward):
    """Its range and direction are those in the server's catalogue. Made by `connect`."""

    def __init__(self, client: RewardClient, info: RewardInfo):
        self.client, self.spec = client, info.spec

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Images (B, H, W, 3) in 0..1 and the users' prompts -> B scores.

        Raises BadInput where the server's judge cannot read a prompt, RewardFailed where it fails or
        miscounts, EndpointError where the server does not answer, or with something else.
        """
        scores: list[float] = []
        for request in self._requests(images, prompts):
            answer = self.client.post("score", request, ScoreResponse)
            scores += self._results(answer.scores, answer.errors, len(request.prompts))
        return scores

    def _requests(self, images: Tensor, prompts: Sequence[str]) -> Iterator[ScoreRequest]:
        """As few requests as the server's limits allow."""
        if len(images) != len(prompts):
            raise BadInput(f"expected one prompt per picture, got {len(prompts)} for {len(images)}")
        if not len(images):
            return
        pictures, limits, url = to_pil(images), self.client.limits, self.client.url
        pixels = pictures[0].width * pictures[0].height
        most = min(MOST_IMAGES, limits.images, limits.pixels // pixels)
        if most < 1:
            raise BadInput(f"a picture has {pixels:,} pixels; {url} takes {limits.pixels:,} in one request")
        encoded: list[bytes] = []
        size, start = ENVELOPE_BYTES, 0
        for i, prompt in enumerate(prompts):
            file = _png(pictures[i])
            # Base64 makes 4 of 3 bytes; an escaped letter takes 6.
            size += (more := 4 * -(-len(file) // 3) + 6 * len(prompt) + 64)
            if encoded and (len(encoded) == most or size > limits.body):
                yield self._request(encoded, prompts[start:i])
                encoded, start, size = [], i, ENVELOPE_BYTES + more
            if size > limits.body:
                raise BadInput(
                    f"picture {i + 1} of {len(images)} takes {size:,} bytes; {url} takes {limits.body:,} in "
                    "one request"
                )
            encoded.append(file)
        yield self._request(encoded, prompts[start:])

    def _request(self, encoded: list[bytes], prompts: Sequence[str]) -> ScoreRequest:
        values = {"images": encoded, "prompts": list(prompts), "rewards": [self.spec.name]}
        return parse_config(ScoreRequest, values, f"the request to {self.client.url}")

    def _results(
        self, results: Mapping[str, list[T]], errors: Mapping[str, RewardError], expected: int
    ) -> list[T]:
        """This reward's entries of an answer, `expected` of them."""
        name, url = self.spec.name, self.client.url
        error = errors.get(name)
        if error is not None:
            message = self.client.shorten(error.message)
            raise (
                BadInput(message) if error.blame == "input" else RewardFailed(name, f"{url} says: {message}")
            )
        if name not in results:
            raise RewardFailed(name, f"{url} answered without it")
        if len(results[name]) != expected:
            raise RewardFailed(name, f"{url} answered {len(results[name])} for {expected} pictures")
        return results[name]


class RemoteCritic(RemoteReward):
    """A served reward that can also say what is wrong."""

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        """What is wrong with each picture. Raises what `score` does."""
        verdicts: list[Verdict] = []
        for request in self._requests(images, prompts):
            answer = self.client.post("criticize", request, CritiqueResponse)
            messages = self._results(answer.verdicts, answer.errors, len(request.prompts))
            verdicts += [message.verdict for message in messages]
        return verdicts


class RewardClient:
    """A reward server's catalogue, and requests to it, tried again where that helps.

    A repeated request changes nothing on the server. The key (`credentials.py`) is REPRISE_SERVE_KEY.
    """

    def __init__(self, url: str, timeout: float = 300.0, retries: int = 4):
        """Fetches the catalogue. Raises BadInput for a wrong address, EndpointError as `post` does."""
        if timeout <= 0 or retries < 0:
            raise BadInput(f"expected timeout > 0 and retries >= 0, got {timeout} and {retries}")
        self.url, self.timeout, self.retries = check_url(url, REWARDS), timeout, retries
        self.key, self.key_note = find_key(self.url, REWARDS)
        self.catalogue = self._parse(self._request("GET", "rewards"), Catalogue)
        self.limits = self.catalogue.limits

    def find(self, name: str) -> RewardInfo:
        """The catalogue's entry of a reward. Raises UnknownName with the near match."""
        served = {info.name: info for info in self.catalogue.rewards}
        critic = served.get(
            name.removesuffix("#critique")
        )  # a criticising VLM judge is served by its plain name
        if name not in served and critic and critic.critic:
            return critic
        if name not in served:
            raise UnknownName(f"reward of {self.url}", name, map(self.shorten, served))
        return served[name]

    def post(self, path: str, request: ScoreRequest, answer: type[M]) -> M:
        """The server's answer. Raises EndpointError where there is none, or none that can be read."""
        return self._parse(self._request("POST", path, request.model_dump_json().encode()), answer)

    def _request(self, method: str, path: str, content: bytes | None = None) -> bytes:
        """The body of an answer with status 200."""

        async def send() -> bytes:
            async with HttpClient(
                self.url,
                timeout=self.timeout,
                max_bytes=MAX_ANSWER_BYTES,
                retries=self.retries,
                key=self.key,
            ) as http:
                try:
                    answer = await http.request(method, path, content=content)
                except HttpFault as fault:
                    message = fault.describe(f"the reward server {self.url}")
                    raise EndpointError(f"{message}; {FAULT_ADVICE[fault.kind]}") from fault
                if answer.status != 200:
                    raise self._status_error(http, answer)
                return answer.body

        return run_in_thread(send())

    def _parse(self, body: bytes, answer: type[M]) -> M:
        try:
            return answer.model_validate_json(body)
        except ValidationError as error:
            why = self.shorten(validation_message(error))
            raise EndpointError(
                f"{self.url} gave no answer that can be read ({why}); {ADDRESS_ADVICE}"
            ) from error

    def shorten(self, text: str) -> str:
        """The server's words as one short line, without the key that it may have sent back."""
        return plain(text.replace(self.key, "(the key)") if self.key else text, QUOTED_CHARACTERS)

    def _status_error(self, http: HttpClient, answer: HttpAnswer) -> EndpointError:
        """The error for a status that is not 200, with the server's own words."""
        url, status, tries = self.url, answer.status, count_tries(answer.tries)
        reason = f"({status}: {http.quote(answer.message)})"
        if status in (401, 403):
            advice = self.key_note if self.key is None else f"correct {self.key_note} in the environment"
            return EndpointError(f"{url} wants its key {reason}; {advice}")
        if status in (429, 503):
            return EndpointError(
                f"{url} has no room{tries} {reason}; wait, or start it with a longer --queue"
            )
        if status >= 500 or status == 408:
            return EndpointError(f"{url} failed{tries} {reason}; its log says why")
        if status in (404, 405) or status < 400:
            return EndpointError(f"{url} is no reward server {reason}; {ADDRESS_ADVICE}")
        return EndpointError(f"{url} refused the request {reason}")


def _png(picture: Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
