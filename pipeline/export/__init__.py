"""Taking findings away, into the tools that people use, and labels from there.

The rows of a run enter; a COCO file, masks, overlays or a table leave. In the other direction any
truth that `prompt_iml.pipeline.truth` reads leaves as one Parquet file of labels.
"""
