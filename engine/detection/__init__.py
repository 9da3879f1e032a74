"""Detection: tiles of images are batched, run and combined to a mask, a score and a label.

A decoded `Image` enters; a `Finding` leaves.
"""
