"""The web side of the reward server: who may ask, what is a request, and what is answered.

Whatever is asked, the answer is JSON; a refusal is 4xx with its reason on one line as `detail`. Imported
where something is served, and nowhere else: it needs the [serve] extra.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from functools import partial
from typing import Literal

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from ..core.config import parse_config
from ..core.errors import BadInput, UnknownName, plain
from ..net.reward_protocol import (
    Catalogue,
    CritiqueResponse,
    Limits,
    RewardError,
    ScoreRequest,
    ScoreResponse,
    VerdictMessage,
)
from .batching import BatchingQueue, QueuedRequest, QueueFull, RewardResults
from .pictures import opened

BODY_SECONDS = 60.0  # until a request must be here, however slowly it drips
DRAINED = 4  # times the limit: what is read and dropped of a body too large, so that its sender sees the 413
POLL = 1.0  # seconds between two looks whether who waits is still there
READING = 16  # bodies that come in at once, which bounds the memory; others wait at the door
RETRY_AFTER = "1"  # seconds
LONGEST_DETAIL = 300

# None of them can be sent by a web page of others that somebody on this machine looks at.
KINDS = ("application/json", "image/png", "image/jpeg")
Look = Literal["score", "criticize"]


def make_app(queue: BatchingQueue, limits: Limits, key: str | None = None) -> FastAPI:
    """The server over `queue`. With `key`, all but /health want it as a bearer token."""
    app = FastAPI(title="Reprise rewards", docs_url=None, redoc_url=None, openapi_url=None)
    guarded = [Depends(_guard(key))] if key else []
    door = asyncio.Semaphore(READING)

    async def ask(request: Request, look: Look) -> RewardResults:
        async with door:
            job = await _admitted(request, queue, limits, look)
        return await _answered(request, queue, job)

    @app.get("/health")
    async def health() -> dict[str, str | int]:
        return {"status": "ok", "waiting": len(queue)}

    @app.get("/rewards", dependencies=guarded)
    async def rewards() -> Catalogue:
        return Catalogue(rewards=queue.cards(), limits=limits)

    @app.post("/score", dependencies=guarded)
    async def score(request: Request) -> Response:
        answer = await ask(request, "score")
        return _json(ScoreResponse(scores=answer.found, errors=_faults(answer)))

    @app.post("/criticize", dependencies=guarded)
    async def criticize(request: Request) -> Response:
        answer = await ask(request, "criticize")
        verdicts = {name: [VerdictMessage.of(v) for v in found] for name, found in answer.found.items()}
        return _json(CritiqueResponse(verdicts=verdicts, errors=_faults(answer)))

    @app.exception_handler(BadInput)
    async def refused(_: Request, error: BadInput) -> Response:
        return _refusal(422, str(error))

    @app.exception_handler(QueueFull)
    async def turned_away(_: Request, error: QueueFull) -> Response:
        return _refusal(503, str(error), {"Retry-After": RETRY_AFTER})

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return _refusal(500, "the server failed; its log says why")

    return app


def _guard(key: str):
    expected = f"Bearer {key}".encode()

    async def check(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, expected):
            wanted = {"WWW-Authenticate": "Bearer"}
            raise HTTPException(401, "this server wants its key as a bearer token", wanted)

    return check


async def _admitted(request: Request, queue: BatchingQueue, limits: Limits, look: Look) -> QueuedRequest:
    """The request as the queue takes it. Raises HTTPException or BadInput where it is none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in KINDS:
        raise HTTPException(415, f"expected a body of Content-Type: {' or '.join(KINDS)}")
    try:
        body = await asyncio.wait_for(_body(request, limits.body), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise HTTPException(408, f"the body was not here within {BODY_SECONDS:g} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the body broke off") from error  # said to nobody
    read = _asked_in_json if kind == KINDS[0] else partial(_asked_in_the_query, request)
    return await asyncio.to_thread(lambda: _job(read(body), queue, limits, look))


async def _answered(request: Request, queue: BatchingQueue, job: QueuedRequest) -> RewardResults:
    done = asyncio.wrap_future(queue.submit(job))
    while not done.done():
        await asyncio.wait([done], timeout=POLL)
        if not done.done() and await request.is_disconnected():
            done.cancel()  # out of the line, where it still stands there
            raise HTTPException(400, "the client hung up")  # said to nobody
    return done.result()


async def _body(request: Request, most: int) -> bytes:
    """The whole body. Raises HTTPException 413 where it has more than `most` bytes."""
    declared = request.headers.get("content-length", "")[:18]  # digits enough for any size
    size, body = 0, bytearray()
    if not declared.isdecimal() or int(declared) <= DRAINED * most:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= most:
                body += chunk
            if size > DRAINED * most:
                break
        if size <= most:
            return bytes(body)
    raise HTTPException(413, f"the body has more than {most:,} bytes; send fewer pictures at once")


def _asked_in_json(body: bytes) -> ScoreRequest:
    try:
        values = from_json(body)
    except ValueError as error:
        raise HTTPException(400, f"the body is no JSON: {error}"[:LONGEST_DETAIL]) from error
    if not isinstance(values, dict):
        raise BadInput("expected a JSON object with images, prompts and rewards")
    return parse_config(ScoreRequest, values, "the request")


def _asked_in_the_query(request: Request, body: bytes) -> ScoreRequest:
    """Of one picture, which is the body: /score?prompt=WORDS&reward=NAME&reward=NAME."""
    query = request.query_params
    values = {
        "images": [base64.b64encode(body).decode()],
        "prompts": query.getlist("prompt"),
        "rewards": query.getlist("reward"),
    }
    return parse_config(ScoreRequest, values, "the query (prompt=WORDS&reward=NAME)")


def _job(asked: ScoreRequest, queue: BatchingQueue, limits: Limits, look: Look) -> QueuedRequest:
    """Raises BadInput for what the queue cannot take."""
    if len(asked.images) > limits.images:
        raise BadInput(f"{len(asked.images)} pictures in one request; the limit is {limits.images}")
    names = list(dict.fromkeys(asked.rewards))
    for name in names:
        if name not in queue.rewards:
            raise UnknownName("reward", name, queue.rewards)
    if look == "criticize":
        mute = [card.name for card in queue.cards() if card.name in names and not card.critic]
        if mute:
            raise BadInput(f"reward {mute[0]!r} only scores; it cannot say what is wrong")
    pictures = opened(asked.images, limits.pixels)
    return QueuedRequest(pictures, asked.prompts, names, criticize=look == "criticize")


def _faults(answer: RewardResults) -> dict[str, RewardError]:
    return {name: RewardError.of(error) for name, error in answer.errors.items()}


def _json(message: ScoreResponse | CritiqueResponse) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")


def _refusal(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": plain(detail)[:LONGEST_DETAIL]}, status, headers)
