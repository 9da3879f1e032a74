"""The parts of the network that the paper does not have.

Pixels and the file's quantisation table enter; features for the high-frequency branch leave.
"""
