"""The frozen semantic branch of the embedded default.

Photographs, and a teacher or none, enter; weights for `train --semantic-weights` leave.
"""
