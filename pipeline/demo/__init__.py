"""Demonstration: the whole pipeline on photographs whose truth is known.

From the photographs of scikit-image and a seed it makes shards of manipulated and authentic
pictures with their truth, a scan of them, its report, and a comparison with the truth.
"""
