"""A scan or an endpoint on a cluster: `prompt-iml submit` and `prompt-iml serve`.

Input: settings. Output: the exit code of a job, or responses over HTTP.
"""
