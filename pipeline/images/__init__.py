"""The bytes of one file to pixels.

Bytes enter; a decoded image with its facts leaves, or an error with a stable code.
"""
