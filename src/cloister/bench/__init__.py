"""Benchmarks: interleaved A/B in one run, medians; never a timed test."""
