"""Detection in a few pictures, in this process and without Ray: the library, and the verdict.

Pictures enter (names, bytes, pictures of Pillow, arrays); a `Finding` of each leaves, made from the
row that a scan would write.
"""
