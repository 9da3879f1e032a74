"""The demonstration: the whole pipeline on photographs whose truth is known.

In come a seed and the photographs of scikit-image; out go shards of manipulated and authentic
pictures, the truth, a scan of them, its report, and a comparison of both.
"""
