"""Storage: files and objects, in local folders and on S3, behind one interface.

Functions take URIs and return bytes or listings; writes create objects exactly once.
"""
