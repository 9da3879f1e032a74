"""What a scan shows while it runs: progress, counters, Prometheus metrics.

Counts enter; lines on stderr and exported metrics leave.
"""
