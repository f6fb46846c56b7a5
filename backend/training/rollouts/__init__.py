"""What policies learn from: prompts, rewrites, their pictures and scores, and evaluations of a policy."""
