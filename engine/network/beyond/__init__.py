"""Parts of the network that the paper does not have; the config switches the first three on.

jpeg_view    `jpeg_view`: histograms of DCT coefficients -> an addition to a high-frequency map
matches      `match_map`: where the picture repeats itself -> an addition to the same map
wide_stem    `stem_width`: pixels -> tokens, in place of the stem of equation 2
score_head   always on: mask, query and fused maps -> the logit of the whole image
dct          constants of JPEG's blocks, which need no torch
"""
