"""The network: pixels (and a quantisation table, and prompts) in, mask and score logits out.

Reads top to bottom: `model` is the whole in thirty lines, `stems` and `swin` the two branches,
`beyond` the options beside them, `fusion` what joins them, `decoder` what makes
the mask.
Shapes in tensor names: B batch, H W rows and columns, C channels, N windows, T tokens of a
window, P prompts (or points), M heads, D channels a head, S tokens of all levels, L levels,
Q queries. Feature maps are channels-last (BHWC), as Swin has them.
"""
