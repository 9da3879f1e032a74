"""One cycle of re-training: labels, training, the gate, the promotion.

Reviewed labels enter; a promoted prompt set leaves, or the reasons for a refusal.
"""
