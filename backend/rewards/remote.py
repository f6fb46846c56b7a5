"""A reward that another process or machine runs: the client of `reprise serve rewards`.

What a judge there sees is what it would see here: pictures go as PNG of 8 bits, to which the judges round
anyway, and each is scored by itself. A server that is away or full is asked again a few times; what it
answers is checked, and nothing becomes a 0.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from ..core.config import parse_config, validation_message
from ..core.errors import BadInput, EndpointError, RewardFailed, UnknownName, plain
from ..core.types import Verdict
from ..net.chat_client import BACKOFF, CONNECT, LONGEST_WAIT, RETRIED, SHOWN
from ..net.credentials import REWARDS, check_url, find_key, is_local
from ..net.reward_protocol import (
    Catalogue,
    CritiqueResponse,
    RewardError,
    RewardInfo,
    ScoreRequest,
    ScoreResponse,
)
from ..storage.images import to_pil

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

CHUNK = 16  # pictures of one request at most, so that a slow judge answers within the timeout
ENVELOPE = 512  # bytes of a request around its pictures and prompts
MOST_BYTES = 4 * 2**20  # of an answer
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


def connect(url: str, name: str, *, timeout: float = 300.0, retries: int = 4) -> RemoteReward:
    """The reward `name` of the server at `url`, a `RemoteCritic` where it can say what is wrong.

    `timeout`: seconds for one answer. Raises what `RemoteReward` does.
    """
    server = RewardServer(url, timeout, retries)
    card = server.card(name)
    return (RemoteCritic if card.critic else RemoteReward)(server, card)


class RemoteReward:
    """Range and direction as the server's `/rewards` says. `connect` makes one."""

    def __init__(self, server: RewardServer, card: RewardInfo):
        self.server, self.spec = server, card.spec

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Images (B, H, W, 3) in 0..1 and the users' prompts -> B scores.

        Raises BadInput where the server's judge cannot read a prompt, RewardFailed where it fails or
        miscounts, EndpointError where the server is away or answers rubbish.
        """
        scores: list[float] = []
        for asked in self._requests(images, prompts):
            answer = self.server.post("score", asked, ScoreResponse)
            scores += self._part(answer.scores, answer.errors, len(asked.prompts))
        return scores

    def _requests(self, images: Tensor, prompts: Sequence[str]) -> Iterator[ScoreRequest]:
        """As few requests as the server's limits allow."""
        if len(images) != len(prompts):
            raise BadInput(f"expected one prompt per picture, got {len(prompts)} for {len(images)}")
        if not len(images):
            return
        pictures, limits = to_pil(images), self.server.limits
        pixels = pictures[0].width * pictures[0].height
        most = min(CHUNK, limits.images, limits.pixels // pixels)
        if most < 1:
            raise BadInput(
                f"a picture has {pixels:,} pixels; {self.server.url} takes {limits.pixels:,} in one request"
            )
        texts: list[str] = []
        size, start = ENVELOPE, 0
        for i, prompt in enumerate(prompts):
            text = _png(pictures[i])
            size += (more := len(text) + 6 * len(prompt) + 64)  # a letter takes 6 bytes where it is escaped
            if texts and (len(texts) == most or size > limits.body):
                yield self._asked(texts, prompts[start:i])
                texts, start, size = [], i, ENVELOPE + more
            if size > limits.body:
                raise BadInput(
                    f"picture {i + 1} of {len(images)} takes {size:,} bytes; {self.server.url} takes "
                    f"{limits.body:,} in one request"
                )
            texts.append(text)
        yield self._asked(texts, prompts[start:])

    def _asked(self, texts: list[str], prompts: Sequence[str]) -> ScoreRequest:
        values = {"images": texts, "prompts": list(prompts), "rewards": [self.spec.name]}
        return parse_config(ScoreRequest, values, f"the request to {self.server.url}")

    def _part(
        self, found: Mapping[str, list[T]], errors: Mapping[str, RewardError], expected: int
    ) -> list[T]:
        """This reward's own entries of an answer, `expected` of them."""
        name, url = self.spec.name, self.server.url
        fault = errors.get(name)
        if fault is not None:
            said = _plain(fault.message)
            raise BadInput(said) if fault.blame == "input" else RewardFailed(name, f"{url} says: {said}")
        if name not in found:
            raise RewardFailed(name, f"{url} answered without it")
        if len(found[name]) != expected:
            raise RewardFailed(name, f"{url} answered {len(found[name])} for {expected} pictures")
        return found[name]


class RemoteCritic(RemoteReward):
    """A served reward that can also say what is wrong."""

    def criticize(self, images: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        """What is wrong with each picture. Raises what `score` does."""
        verdicts: list[Verdict] = []
        for asked in self._requests(images, prompts):
            answer = self.server.post("criticize", asked, CritiqueResponse)
            found = self._part(answer.verdicts, answer.errors, len(asked.prompts))
            verdicts += [judged.verdict for judged in found]
        return verdicts


class RewardServer:
    """The server at an address: its catalogue, and requests that are repeated where that helps.

    Lost connections and 408, 429, 5xx are tried again `retries` times, after waits that double; asking
    twice changes nothing. The key (`keys.py`) comes from REPRISE_SERVE_KEY.
    """

    def __init__(self, url: str, timeout: float = 300.0, retries: int = 4):
        """Asks for the catalogue. Raises BadInput for what is no address, EndpointError as `post` does."""
        import httpx

        if timeout <= 0 or retries < 0:
            raise BadInput(f"expected timeout > 0 and retries >= 0, got {timeout} and {retries}")
        self.url, self.timeout, self.retries = check_url(url, REWARDS), timeout, retries
        parsed = httpx.URL(self.url)
        local = is_local(parsed.host)
        self.key, self.key_note = find_key(self.url, REWARDS)
        headers = {"Accept-Encoding": "identity"}  # the bound on sizes means what is sent
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        self.client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=CONNECT),
            trust_env=not local,  # a proxy of the environment cannot reach this machine's own servers
            verify=not local or parsed.scheme == "https",  # reading certificates for nothing takes .1 s
        )
        self.catalogue = self._read(self._ask("GET", "rewards"), Catalogue)
        self.limits = self.catalogue.limits

    def card(self, name: str) -> RewardInfo:
        """What the server says of one of its rewards. Raises UnknownName with the near match."""
        cards = {card.name: card for card in self.catalogue.rewards}
        critic = cards.get(name.removesuffix("#critique"))  # a VLM judge that criticises bears its plain name
        if name not in cards and critic and critic.critic:
            return critic
        if name not in cards:
            raise UnknownName(f"reward of {self.url}", name, map(_plain, cards))
        return cards[name]

    def post(self, path: str, asked: ScoreRequest, answer: type[M]) -> M:
        """The server's answer. Raises EndpointError where there is none, or none that can be read."""
        return self._read(self._ask("POST", path, asked.model_dump_json().encode()), answer)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of a response with status 200."""
        import httpx

        for tried in range(self.retries + 1):
            wait = min(BACKOFF * 2**tried, LONGEST_WAIT)
            try:
                status, headers, said = self._send(method, path, body)
            except httpx.ConnectTimeout as error:
                raise self._down(f"no connection within {CONNECT:g} s", tried) from error
            except httpx.TimeoutException as error:
                raise EndpointError(
                    f"{self.url} did not answer within {self.timeout:g} s; its line is long or its judge slow"
                ) from error
            except httpx.HTTPError as error:
                fault = self._down(str(error) or type(error).__name__, tried)
                fault.__cause__ = error
            else:
                if status == 200:
                    return said
                fault = self._refused(status, said, tried)
                if status not in RETRIED:
                    raise fault
                wait = max(wait, _seconds(headers.get("retry-after", "")))
            if tried == self.retries or wait > LONGEST_WAIT:
                raise fault
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of a response, whose size and time are bounded."""
        import httpx

        until = time.monotonic() + self.timeout
        headers = {"Content-Type": "application/json"} if body is not None else {}
        said = bytearray()
        with self.client.stream(method, f"{self.url}/{path}", content=body, headers=headers) as response:
            for chunk in response.iter_bytes():
                said += chunk
                if len(said) > MOST_BYTES:
                    raise EndpointError(f"{self.url} answered with more than {MOST_BYTES:,} bytes; {_ADVICE}")
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("it drips")
        return response.status_code, response.headers, bytes(said)

    def _read(self, body: bytes, answer: type[M]) -> M:
        try:
            return answer.model_validate_json(body)
        except ValidationError as error:
            why = _plain(validation_message(error))
            raise EndpointError(f"{self.url} gave no answer that can be read ({why}); {_ADVICE}") from error

    def _down(self, why: str, tried: int) -> EndpointError:
        return EndpointError(
            f"cannot reach the reward server {self.url}{_times(tried)} ({_plain(why)}); start it with "
            "`reprise serve rewards`, or correct the address"
        )

    def _refused(self, status: int, body: bytes, tried: int) -> EndpointError:
        """What a response that is not 200 comes to, with the server's own words."""
        said = f"({status}: {self._quote(body)})"
        if status in (401, 403):
            advice = self.key_note if self.key is None else f"correct {self.key_note} in the environment"
            return EndpointError(f"{self.url} wants its key {said}; {advice}")
        if status in (429, 503):
            return EndpointError(
                f"{self.url} has no room{_times(tried)} {said}; wait, or start it with a longer --queue"
            )
        if status >= 500 or status == 408:
            return EndpointError(f"{self.url} failed{_times(tried)} {said}; its log says why")
        if status in (404, 405) or status < 400:
            return EndpointError(f"{self.url} is no reward server {said}; {_ADVICE}")
        return EndpointError(f"{self.url} refused the request {said}")

    def _quote(self, body: bytes) -> str:
        """The server's reason, without the key that it may have sent back."""
        try:
            said = _Refusal.model_validate_json(body).detail
        except ValidationError:
            said = body.decode("utf-8", "replace")
        return repr(_plain(said.replace(self.key, "(the key)") if self.key else said))


class _Refusal(BaseModel):
    detail: str


_ADVICE = "give the address that `reprise serve rewards` says it listens at"


def _png(picture: Image) -> str:
    """Base64 of a picture's PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def _plain(said: str) -> str:
    return plain(said, SHOWN)


def _seconds(text: str) -> float:
    """The header Retry-After, where it is a number of seconds."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0


def _times(tried: int) -> str:
    return f" after {tried + 1} tries" if tried else ""
