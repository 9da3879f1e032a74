"""Registry of prompt sets, which re-training writes, and scans and endpoints read.

A registry is found by a URI and the digest of a base model's weights. It holds prompt sets with
their policies and the gate's verdicts, and names the current set. It needs neither torch nor Ray.

    documents.py    the JSON documents: entries of the log, records, verdicts
    registry.py     reading: the log, the stored sets, the current set
    promotion.py    writing: publish, promote, roll back, and the lease of a re-training cycle
    models.py       `prompt-iml models`
"""
