"""From the pixels of one image to a finding: tiles, batches, one mask, one score, one label.

A decoded `Image` enters; a `Finding` leaves.
"""
