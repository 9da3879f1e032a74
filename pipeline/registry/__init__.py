"""The registry of prompt sets: what re-training stores, and what scans and endpoints run with.

In come a URI, the digest of a base model's weights and, to write, a prompt set with its policy and
the gate's verdict. Out come stored prompt sets, and which of them is current. Nothing here needs
torch or Ray.

    registry.py     reading: the log, the stored sets, what is current
    promotion.py    writing: publish, promote, roll back, and the lease of a re-training cycle
    models.py       `prompt-iml models`
"""
