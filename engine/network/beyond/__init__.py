"""Parts of the network that the paper does not have; the config switches the first three on.

Pixels, the file's quantisation table, statistics of the whole picture
(`engine.detection.context`) or maps of the network enter. An addition to a map of the
high-frequency branch (`jpeg_view`, `matches`), its tokens (`wide_stem`), or the score of the whole
image (`score_head`) leaves.
"""
