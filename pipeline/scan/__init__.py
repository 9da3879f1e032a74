"""The scan: units through Ray Data to actors, rows to committed parts.

Settings enter; a complete run and its summary leave.
"""
