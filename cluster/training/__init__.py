"""Training on Ray Train.

Input: photographs and reviewers' labels. Output: weights or a prompt set, with training curves and
metrics.
"""
