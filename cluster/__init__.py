"""The cluster room: a fleet in motion. Empty so far: training, submission and manifests come here.

This room may import `pipeline` and `engine`; neither imports it.
"""
