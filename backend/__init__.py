"""Everything Reprise does without ComfyUI. Never imports `comfy` or `nodes/`."""
