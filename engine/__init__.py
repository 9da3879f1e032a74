"""The engine room: decoded pixels in, a finding out (mask, score, regions).

In may come an `Image`; out goes a `Finding`. Here are the network, its operator, the export, the
runtimes, checkpoints, views and calibration. This room knows no Ray, no object storage and no
command line, and imports torch only where a network is trained, exported or used as the reference.
"""
