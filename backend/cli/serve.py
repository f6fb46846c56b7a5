"""`reprise serve rewards`: judges for other processes and machines, over HTTP."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ..core.errors import BadInput, Interrupted
from ..net.credentials import REWARDS, sendable
from . import options

KEY = REWARDS.keys[0]
PORT = 8009
MIB = 2**20

app = typer.Typer(no_args_is_help=True, help="Answer other processes and machines.")


@app.callback()
def _group() -> None:
    """Keeps the one command a subcommand."""


@app.command()
def rewards(
    names: options.Rewards = None,
    host: Annotated[
        str, typer.Option(help=f"Where to listen; beyond this machine it needs {KEY} in the environment.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = PORT,
    batch: Annotated[
        int, typer.Option(metavar="N", min=1, max=4096, help="Pictures of waiting requests judged together.")
    ] = 16,
    queue: Annotated[
        int, typer.Option(metavar="N", min=1, max=65536, help="Requests that may wait; more are turned away.")
    ] = 64,
    max_images: Annotated[int, typer.Option(metavar="N", min=1, max=4096, help="Of one request.")] = 64,
    max_pixels: Annotated[
        int, typer.Option(metavar="N", min=1, help="Of all pictures of a request together.")
    ] = 2**25,
    max_mib: Annotated[int, typer.Option(metavar="N", min=1, help="Of a request's body.")] = 64,
) -> None:
    """Serve rewards as JSON over HTTP, until Ctrl-C. Others reach them as --judge remote:NAME@URL."""
    from ..factory import DEFAULT_JUDGE, make_reward
    from ..net.reward_protocol import Limits
    from ..serving.app import make_app
    from ..serving.batching import BatchingQueue
    from ..serving.server import address, is_loopback, listen, serve
    from . import terminal

    key = check_key(os.environ.get(KEY, ""))
    if key is None and not is_loopback(host):
        raise BadInput(
            f"--host {host} lets other machines in, so a key is needed: set {KEY} to a long random word here "
            "and where the clients run, or leave --host away and come through a tunnel (ssh -L)"
        )
    limits = Limits(images=max_images, pixels=max_pixels, body=max_mib * MIB)
    with listen(host, port) as sock:  # before the judges are loaded, which takes a while
        served = [make_reward(name) for name in dict.fromkeys(names or [DEFAULT_JUDGE])]
        kinds = [reward.spec.name for reward in served]
        if len(set(kinds)) < len(kinds):
            raise BadInput(f"two rewards have the same name: {', '.join(kinds)}; serve one of them")
        requests = BatchingQueue(served, waiting=queue, batch=batch, pixels=max_pixels)
        line = f"{', '.join(kinds)} at {address(sock)}; Ctrl-C stops"
        try:
            serve(make_app(requests, limits, key), requests, sock, lambda: terminal.note(line))
        except KeyboardInterrupt as stop:
            raise Interrupted(f"stopped; requests answered: {requests.answered}") from stop


def check_key(text: str) -> str | None:
    """The key that clients have to show, None for an empty one. Raises BadInput, without showing it."""
    key = text.strip()
    if not sendable(key):
        raise BadInput(f"{KEY} holds characters that no header carries; take letters, digits and - _ .")
    return key or None
