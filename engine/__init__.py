"""Decoded pixels in (`Image`), a finding out (`Finding`: mask, score, regions).

The package holds the network, its operator, the export, the runtimes, model folders, views and
calibration. It imports no Ray, no object storage and no command line, and imports torch only where
a network is trained, exported or used as the reference.
"""
