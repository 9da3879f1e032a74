"""The report: one self-contained HTML page about a run.

A run's table enters; an HTML file leaves.
"""
