"""The cluster room: a fleet in motion.

    photographs -> forgeries (with histories, seeded) -> distil the frozen branch -> train the rest
    a scan's settings -> a job on a Ray cluster; the cluster itself, on Kubernetes: kubernetes/
    an image by HTTP -> the row that a scan makes of it, on Ray Serve

This room may import `pipeline`, `engine` and torch; no other room imports it.
"""
