"""ShapeWorld, the embedded world: scenes, drawing, captions, prompts, detector, weights."""
