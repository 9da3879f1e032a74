"""A model folder: weights, graph, prompts and policy, read and checked by their digests.

A name or a path enters; a `Model` leaves.
"""
