"""A scan or an endpoint on a cluster: `prompt-iml submit` and `prompt-iml serve`.

Settings enter; a job's exit code or answers over HTTP leave.
"""
