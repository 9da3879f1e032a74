"""Files and objects behind one interface: local folders and S3.

A URI enters; bytes, listings and objects created exactly once leave.
"""
