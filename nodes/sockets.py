"""The pack's own socket types and what its nodes share in their schemas."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "Reprise"
Rewriter = io.Custom("REPRISE_REWRITER")
Refiner = io.Custom("REPRISE_REFINER")
Judge = io.Custom("REPRISE_JUDGE")
EMBEDDED = "shapeworld (embedded)"
