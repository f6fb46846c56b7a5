"""Evaluations: rewriters, searches and judges measured with confidence intervals."""
