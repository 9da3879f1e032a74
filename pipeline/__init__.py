"""The pipeline room: URIs in, a Parquet table out, exactly one row for every input.

In may come inputs and settings; out go parts, a manifest, a report. Here are sources, plan,
decode, the scan on Ray Data, results, evaluation, calibration and the command line. This room
imports `engine` and knows nothing of Kubernetes or training.
"""
