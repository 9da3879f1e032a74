"""The cluster room: a fleet in motion. So far: how the packaged weights are trained, on one CPU.

    photographs -> forgeries (with histories, seeded) -> distil the frozen branch -> train the rest

This room may import `pipeline`, `engine` and torch; no other room imports it.
"""
