"""Measurements: what the README's tables are made from. Results lie in `benchmarks/results/`."""
