"""Pipeline: scans the images at some URIs into a Parquet table, one row for every input.

It holds sources, plan, decoding, the scan on Ray Data, results, evaluation, calibration and the
command line. It imports `engine`, and depends neither on Kubernetes nor on training.
"""
