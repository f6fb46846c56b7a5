"""The web side of the reward server: who may ask, what counts as a request, and the answers.

Every answer is JSON; a refusal is 4xx or 503 with its reason on one line as `detail`. Imported only where
something is served: it needs the [serve] extra.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Literal

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from ..core.config import parse_config, validation_message
from ..core.errors import BadInput, UnknownName, plain
from ..net.reward_protocol import (
    LONGEST_NAME,
    Catalogue,
    CritiqueResponse,
    Limits,
    RewardError,
    ScoreRequest,
    ScoreResponse,
    VerdictMessage,
)
from .access import address_of, local_only, require
from .batching import BatchingQueue, QueuedRequest, QueueFull, RewardResults
from .body import read_body
from .memory import Memory
from .pictures import checked

RETRY_AFTER = "1"  # seconds
LONGEST_DETAIL = 300
MOST_MARKS = 2**17  # commas and brackets in a request: each can become an object, a hundred times its size

# A web page of another site, opened on this machine, can send none of them without asking first.
CONTENT_TYPES = ("application/json", "image/png", "image/jpeg")
Action = Literal["score", "criticize"]


def make_app(
    queue: BatchingQueue, limits: Limits, key: str | None = None, memory: Memory | None = None
) -> FastAPI:
    """The app over `queue`; `memory` bounds the bodies of all requests together.

    With `key`, all paths but /health need it as a bearer token: it is checked before the body is read.
    Without, only programs on this machine are answered. Once its `state.stopping` is set, bodies that are not
    complete are refused.
    """
    app = FastAPI(title="Reprise rewards", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.stopping = asyncio.Event()
    guarded = [Depends(require(key) if key else local_only)]
    memory = memory or Memory()
    parsing = asyncio.Semaphore(1)  # one at a time: until it is parsed, a request takes up to thrice its size

    async def ask(request: Request, action: Action) -> RewardResults:
        read = _reader(request)
        with memory.lease(address_of(request)) as lease:
            body = await read_body(request, lease, limits.body)
            queue.check(lease.address)  # before the work of parsing
            async with parsing:
                job = await asyncio.to_thread(lambda: _job(read(body), queue, limits, action))
            body.clear()
            job.address = lease.address
            return await _results(request, queue, job)

    @app.get("/health", dependencies=[] if key else [Depends(local_only)])
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


def _reader(request: Request) -> Callable[[bytearray], ScoreRequest]:
    """How the body of this request is parsed. Raises HTTPException 415."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in CONTENT_TYPES:
        raise HTTPException(415, f"expected a body of Content-Type: {' or '.join(CONTENT_TYPES)}")
    return _parse_json if kind == CONTENT_TYPES[0] else partial(_parse_query, request)


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


def _parse_json(body: bytearray) -> ScoreRequest:
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_MARKS:
        raise HTTPException(413, f"the body has more than {MOST_MARKS:,} commas and brackets")
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        first = next((one for one in faults if one["type"] == "extra_forbidden"), faults[0])
        kind, place = first["type"], first["loc"]
        if kind == "json_invalid":
            raise HTTPException(400, f"the body is no JSON: {first['msg']}"[:LONGEST_DETAIL]) from error
        if kind == "extra_forbidden":
            name = str(place[0])[:LONGEST_NAME]
            raise UnknownName("setting in the request:", name, ScoreRequest.model_fields) from error
        if kind == "model_type":
            raise BadInput("expected a JSON object with images, prompts and rewards") from error
        if kind in ("bytes_type", "bytes_invalid_encoding"):
            raise BadInput(f"images.{place[1]}: picture {int(place[1]) + 1} is no base64 text") from error
        raise BadInput(f"the request: {validation_message(error)}") from error


def _parse_query(request: Request, body: bytearray) -> ScoreRequest:
    """The request about one picture, which is the body: /score?prompt=WORDS&reward=NAME&reward=NAME."""
    query = request.query_params
    values = {"images": [bytes(body)], "prompts": query.getlist("prompt"), "rewards": query.getlist("reward")}
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
    pictures = checked(request.images, limits.pixels)
    return QueuedRequest(pictures, request.prompts, names, criticize=action == "criticize")


def _errors(answer: RewardResults) -> dict[str, RewardError]:
    return {name: RewardError.of(error) for name, error in answer.errors.items()}


def _json(message: ScoreResponse | CritiqueResponse) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")


def _refusal(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": plain(detail)[:LONGEST_DETAIL]}, status, headers)
