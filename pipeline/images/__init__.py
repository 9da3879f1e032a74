"""Decoding of image files to pixels and facts, or to errors with stable codes."""
