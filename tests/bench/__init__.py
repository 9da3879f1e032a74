"""Benchmarks: ratios, each of two rates measured in one run on one machine (`make bench`)."""
