"""Reprise: a ComfyUI node pack and the package `reprise`, in one folder.

ComfyUI imports this file by path and calls `comfy_entrypoint`. Nothing is imported here, so that the
pack costs a host's start-up milliseconds; the nodes come with the first call.
"""

__version__ = "0.1.0"
WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The pack's `ComfyExtension`; only ComfyUI calls this."""
    from .nodes import extension

    return extension()
