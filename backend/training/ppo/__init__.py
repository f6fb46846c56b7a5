"""PPO: a refiner (PRIP) learns from the scores of its own refinements' pictures."""
