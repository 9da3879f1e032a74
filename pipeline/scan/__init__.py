"""Scan of images on Ray: its plan runs in scan actors, which commit parts of rows.

The input is the settings; the output is a complete run and its summary.
"""
