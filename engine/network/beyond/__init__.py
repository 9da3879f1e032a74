"""What the paper does not have, each part an option that the config switches on.

Enter: the same pixels, and the file's quantisation table. Leave: an addition to a map of the
high-frequency branch.
"""
