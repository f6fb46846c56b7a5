"""(prompt, seed) jobs to images. Must not import rewriters, rewards or search."""
