"""The machine at hand: what it can run, and engines built for it.

Settings enter; advice or a stored engine leaves.
"""
