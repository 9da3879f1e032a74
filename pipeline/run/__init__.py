"""Output folder of a run: its configuration, plan, parts, manifest and table.

Rows are written as Parquet files with a manifest, which are verified and compacted here.
"""
