"""The demo: forge photographs, scan them, compare with the truth.

A folder's name enters; shards, results, a report and a picture leave.
"""
