"""Generator of forgeries, for the demo and for training.

It turns photographs with the outlines of their objects, and a seed, into manipulated and authentic
pictures with masks, which have passed the same manipulation histories. The same photographs and
seed give the same pixels.
"""
