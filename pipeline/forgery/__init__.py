"""One generator of forgeries, for the demo and for training.

In come photographs with the outlines of their objects, and a seed; out come manipulated and
authentic pictures with masks that passed the same manipulation histories. The same photographs
and seed give the same pixels.
"""
