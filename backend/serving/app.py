"""The web side of the reward server: the key, what counts as a request, and the answers.

Every answer is JSON; a refusal is 4xx with its reason on one line as `detail`. Imported only where something
is served: it needs the [serve] extra.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from collections.abc import Coroutine
from functools import partial
from typing import Any, Literal

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

BODY_SECONDS = 60.0  # until a request's body must be complete, however slowly it comes
DISCARD_FACTOR = 4  # times the limit: how much of a too large body is read, so that its sender sees the 413
BODIES_AT_ONCE = 16  # bodies read at the same time, which bounds the memory; other requests wait
RETRY_AFTER = "1"  # seconds
LONGEST_DETAIL = 300

# A web page of another site, opened on this machine, can send none of them without asking first.
CONTENT_TYPES = ("application/json", "image/png", "image/jpeg")
Action = Literal["score", "criticize"]


def make_app(queue: BatchingQueue, limits: Limits, key: str | None = None) -> FastAPI:
    """The app over `queue`. With `key`, all paths but /health need it as a bearer token: it is checked before
    the body is read. Once its `state.stopping` is set, bodies that are not complete are refused."""
    app = FastAPI(title="Reprise rewards", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.stopping = asyncio.Event()
    guarded = [Depends(_require(key))] if key else []
    reading = asyncio.Semaphore(BODIES_AT_ONCE)

    async def ask(request: Request, action: Action) -> RewardResults:
        async with reading:
            job = await _read_request(request, queue, limits, action)
        return await _results(request, queue, job)

    @app.get("/health")
    async def health() -> dict[str, str | int]:
        return {"status": "ok", "waiting": len(queue)}

    @app.get("/rewards", dependencies=guarded)
    async def rewards() -> Catalogue:
        return Catalogue(rewards=queue.infos(), limits=limits)

    @app.post("/score", dependencies=guarded)
    async def score(request: Request) -> Response:
        answer = await ask(request, "score")
        return _json(ScoreResponse(scores=answer.values, errors=_errors(answer)))

    @app.post("/criticize", dependencies=guarded)
    async def criticize(request: Request) -> Response:
        answer = await ask(request, "criticize")
        verdicts = {name: [VerdictMessage.of(v) for v in values] for name, values in answer.values.items()}
        return _json(CritiqueResponse(verdicts=verdicts, errors=_errors(answer)))

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


def _require(key: str):
    expected = f"Bearer {key}".encode()

    async def check(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, expected):
            header = {"WWW-Authenticate": "Bearer"}
            raise HTTPException(401, "this server wants its key as a bearer token", header)

    return check


async def _read_request(
    request: Request, queue: BatchingQueue, limits: Limits, action: Action
) -> QueuedRequest:
    """The request as the queue takes it. Raises HTTPException or BadInput where it cannot be read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in CONTENT_TYPES:
        raise HTTPException(415, f"expected a body of Content-Type: {' or '.join(CONTENT_TYPES)}")
    body = await _before_stop(request, _body(request, limits.body))
    read = _parse_json if kind == CONTENT_TYPES[0] else partial(_parse_query, request)
    return await asyncio.to_thread(lambda: _job(read(body), queue, limits, action))


async def _results(request: Request, queue: BatchingQueue, job: QueuedRequest) -> RewardResults:
    """What the queue finds; a client that disconnects leaves the queue."""
    done = asyncio.wrap_future(queue.submit(job))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            done.cancel()
            raise HTTPException(400, "the client hung up")  # nobody reads it
    finally:
        gone.cancel()
    return done.result()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _before_stop(request: Request, body: Coroutine[Any, Any, bytes]) -> bytes:
    """The body, where it is complete in time and before the server stops."""
    reading = asyncio.ensure_future(body)
    stopping = asyncio.ensure_future(request.app.state.stopping.wait())
    try:
        await asyncio.wait({reading, stopping}, timeout=BODY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            return reading.result()
        if stopping.done():
            raise QueueFull("the server is stopping")
        raise HTTPException(408, f"the body was not complete within {BODY_SECONDS:g} s")
    except ClientDisconnect as error:
        raise HTTPException(400, "the body broke off") from error  # or it was not encoded as HTTP/1.1 says
    finally:
        reading.cancel()
        stopping.cancel()


async def _body(request: Request, most: int) -> bytes:
    """The whole body. Raises HTTPException 413 where it has more than `most` bytes."""
    declared = request.headers.get("content-length", "")[:18]  # digits enough for any size
    size, body = 0, bytearray()
    if not declared.isdecimal() or int(declared) <= DISCARD_FACTOR * most:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= most:
                body += chunk
            if size > DISCARD_FACTOR * most:
                break
        if size <= most:
            return bytes(body)
    raise HTTPException(413, f"the body has more than {most:,} bytes; send fewer pictures at once")


def _parse_json(body: bytes) -> ScoreRequest:
    try:
        values = from_json(body)
    except ValueError as error:
        raise HTTPException(400, f"the body is no JSON: {error}"[:LONGEST_DETAIL]) from error
    if not isinstance(values, dict):
        raise BadInput("expected a JSON object with images, prompts and rewards")
    return parse_config(ScoreRequest, values, "the request")


def _parse_query(request: Request, body: bytes) -> ScoreRequest:
    """The request about one picture, which is the body: /score?prompt=WORDS&reward=NAME&reward=NAME."""
    query = request.query_params
    values = {
        "images": [base64.b64encode(body).decode()],
        "prompts": query.getlist("prompt"),
        "rewards": query.getlist("reward"),
    }
    return parse_config(ScoreRequest, values, "the query (prompt=WORDS&reward=NAME)")


def _job(request: ScoreRequest, queue: BatchingQueue, limits: Limits, action: Action) -> QueuedRequest:
    """Raises BadInput for what the queue cannot take."""
    if len(request.images) > limits.images:
        raise BadInput(f"{len(request.images)} pictures in one request; the limit is {limits.images}")
    names = list(dict.fromkeys(request.rewards))
    for name in names:
        if name not in queue.rewards:
            raise UnknownName("reward", name, queue.rewards)
    if action == "criticize":
        score_only = [one.name for one in queue.infos() if one.name in names and not one.critic]
        if score_only:
            raise BadInput(f"reward {score_only[0]!r} only scores; it cannot say what is wrong")
    pictures = opened(request.images, limits.pixels)
    return QueuedRequest(pictures, request.prompts, names, criticize=action == "criticize")


def _errors(answer: RewardResults) -> dict[str, RewardError]:
    return {name: RewardError.of(error) for name, error in answer.errors.items()}


def _json(message: ScoreResponse | CritiqueResponse) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")


def _refusal(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": plain(detail)[:LONGEST_DETAIL]}, status, headers)
