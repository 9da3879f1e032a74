"""Detection in one image: an `Image` in, a `Finding` (mask, score, regions) out.

The package holds the network, its operator, the export, the runtimes, model folders, views and
calibration. It imports no Ray, no object storage and no command line, and imports torch only where
a network is trained, exported or used as the reference.
"""
