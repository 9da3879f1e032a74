"""Benchmark of a version: the sets that calibrate and evaluate it, and the tables of its card."""
