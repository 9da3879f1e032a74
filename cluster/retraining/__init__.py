"""One cycle of re-training: labels, training, the gate, the promotion.

Input: reviewers' labels. Output: a promoted prompt set, or the reasons why it was refused.
"""
