"""The embedded world: scenes, drawing, captions, prompts, detector, build recipe, weights."""
