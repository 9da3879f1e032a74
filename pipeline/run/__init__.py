"""The output folder of a run: its configuration, plan, parts, manifest and table.

Rows enter; Parquet files and a manifest leave, and are verified and compacted here.
"""
