"""Monitoring of a running scan: progress on stderr, counters, Prometheus metrics."""
