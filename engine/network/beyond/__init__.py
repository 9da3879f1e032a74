"""What the paper does not have, each part an option that the config switches on.

Enter: the same pixels, the file's quantisation table, or maps of the network. Leave: an addition
to a map of the high-frequency branch (`jpeg_view`, `matches`), its tokens (`wide_stem`), or the
score of the whole image (`score_head`).
"""
