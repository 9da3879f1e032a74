"""Pretraining of the frozen semantic branch of the default model.

Input: photographs, optionally a teacher network. Output: weights for `train --semantic-weights`.
"""
