"""The registry of prompt sets: which are stored, which one is promoted.

Its URI enters; a prompt set with its policy leaves. It needs neither PyTorch nor Ray.
"""
