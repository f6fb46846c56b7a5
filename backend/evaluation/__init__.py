"""Evaluations with confidence intervals, and performance ratios."""
