"""Training on Ray Train.

Photographs or labels enter; weights or a prompt set leave, with a curve and an evaluation.
"""
