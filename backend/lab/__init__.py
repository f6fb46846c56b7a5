"""What only the developers run: benchmarks, and the recipes of the embedded weights. Not in the wheel."""
