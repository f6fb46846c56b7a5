"""Judges with published weights, one module each. They read the files as they were published."""
