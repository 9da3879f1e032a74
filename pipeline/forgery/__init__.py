"""The generator of forged pictures whose truth is known.

Photographs enter; forged and authentic pictures with their masks leave.
"""
