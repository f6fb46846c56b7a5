"""Judges with published weights, one file each, on the files as they were published."""
