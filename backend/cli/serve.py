"""`reprise serve rewards`: rewards for other processes and machines, over HTTP."""

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

app = typer.Typer(no_args_is_help=True, help="Work for other processes and machines.")


@app.callback()
def _group() -> None:
    """Keeps the one command a subcommand."""


@app.command()
def rewards(
    names: options.Rewards = None,
    host: Annotated[
        str, typer.Option(help=f"Where to listen. To let other machines in, set {KEY} to a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(callback=options.between(0, 65535), help="0 takes a free one.")] = PORT,
    batch: Annotated[
        int,
        typer.Option(
            metavar="N",
            callback=options.between(1, 4096),
            help="Pictures of waiting requests that are scored together.",
        ),
    ] = 16,
    queue: Annotated[
        int,
        typer.Option(
            metavar="N",
            callback=options.between(1, 65536),
            help="Requests that may wait, half as many from one address; further ones are refused.",
        ),
    ] = 128,
    queue_mib: Annotated[
        int,
        typer.Option(
            metavar="N",
            callback=options.between(1),
            help="MiB of all requests that are read, wait or are scored; from one address half as many.",
        ),
    ] = 512,
    max_images: Annotated[
        int,
        typer.Option(metavar="N", callback=options.between(1, 4096), help="Pictures of a request at most."),
    ] = 64,
    max_pixels: Annotated[
        int,
        typer.Option(
            metavar="N", callback=options.between(1), help="Pixels of all pictures of a request at most."
        ),
    ] = 2**25,
    max_mib: Annotated[
        int, typer.Option(metavar="N", callback=options.between(1), help="MiB of a request's body at most.")
    ] = 64,
) -> None:
    """Serve rewards as JSON over HTTP until Ctrl-C. Others use them as --judge remote:NAME@URL."""
    from ..factory import DEFAULT_JUDGE, open_rewards, parse_reward
    from ..net.reward_protocol import Limits
    from ..serving.app import make_app
    from ..serving.batching import BatchingQueue
    from ..serving.memory import Memory
    from ..serving.server import address, is_loopback, listen, serve
    from . import terminal

    key = check_key(os.environ.get(KEY, ""))
    if key is None and not is_loopback(host):
        raise BadInput(
            f"--host {host} lets other machines in, so a key is needed: set {KEY} to a long random word here "
            "and where the clients run, or leave --host away and come through a tunnel (ssh -L)"
        )
    names = names or [DEFAULT_JUDGE]
    for name in names:
        parse_reward(name)
    limits, memory = Limits(images=max_images, pixels=max_pixels, body=max_mib * MIB), Memory(queue_mib * MIB)
    if limits.body > memory.largest:
        raise BadInput(f"--queue-mib {queue_mib} is less than four times --max-mib {max_mib}; change one")
    with listen(host, port) as sock:  # before the judges are loaded, which takes a while
        served = list(open_rewards(names).values())
        kinds = [reward.spec.name for reward in served]
        if len(set(kinds)) < len(kinds):
            raise BadInput(f"two rewards have the same name: {', '.join(kinds)}; serve one of them")
        requests = BatchingQueue(served, waiting=queue, batch=batch)
        line = f"{', '.join(kinds)} at {address(sock)}; Ctrl-C stops"
        try:
            serve(make_app(requests, limits, key, memory), requests, sock, lambda: terminal.note(line))
        except KeyboardInterrupt as stop:
            raise Interrupted(f"stopped; requests answered: {requests.answered}") from stop


def check_key(text: str) -> str | None:
    """The key that clients have to show, None for an empty one. Raises BadInput, without showing it."""
    key = text.strip()
    if not sendable(key):
        raise BadInput(f"{KEY} holds characters that no header carries; take letters, digits and - _ .")
    return key or None
