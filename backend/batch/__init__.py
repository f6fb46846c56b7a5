"""A saved ComfyUI workflow over many prompts and settings, on one or more servers."""
