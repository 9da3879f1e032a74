"""The two digests in the metadata of model.onnx: of the weights it belongs to, and of itself.

The graph's own digest is the sha256 of the file in which these 64 digits are zeros. ONNX stores a
pair of the metadata as key, tag, length and value, so a value of 64 characters is found and
replaced without a parser.
"""

from __future__ import annotations

import hashlib

WEIGHTS_DIGEST, GRAPH_DIGEST = "weights_sha256", "graph_sha256"  # keys of the metadata
DIGITS = 64
BLANK = "0" * DIGITS  # value under `GRAPH_DIGEST` before `seal`


def seal(graph: bytes) -> bytes:
    """Return the file of a graph, whose own digest is `BLANK`, with that digest filled in.

    Raises:
        ValueError: the metadata has no `GRAPH_DIGEST`.
    """
    return _replaced(graph, digest_of(graph))


def recorded(graph: bytes, key: str) -> str | None:
    """Return the digest that a graph's file carries under a key of the metadata, None without."""
    place = _place(graph, key)
    return None if place < 0 else graph[place : place + DIGITS].decode("ascii", "replace")


def digest_of(graph: bytes) -> str:
    """Return the digest that a graph's file should carry as its own; raises as `seal`."""
    return hashlib.sha256(_replaced(graph, BLANK)).hexdigest()


def _replaced(graph: bytes, digest: str) -> bytes:
    place = _place(graph, GRAPH_DIGEST)
    if place < 0:
        raise ValueError(f"the graph's metadata has no {GRAPH_DIGEST}")
    return graph[:place] + digest.encode() + graph[place + DIGITS :]


def _place(graph: bytes, key: str) -> int:
    """Return where the value under a key begins; -1 without one of 64 characters."""
    before = key.encode() + bytes([2 << 3 | 2, DIGITS])  # field 2 of a pair is text, so long
    found = graph.rfind(before)
    return -1 if found < 0 else found + len(before)
