"""Prompt-IML (arXiv 2401.00653): RGB pixels in, mask logits and the logit of a score out.

Parts beyond the paper also take facts of the picture, which `engine.detection.context` computes.
Read the files in this order:

    config    the sizes, and which of them the paper states
    cells     the layout (B, S, C) of a map; a cell is one position of it, which Swin calls a token
    model     the whole network: the paper's figure 2
    stems     from pixels to tokens: equations 1 and 2
    swin      the layers of both branches, and the prompts: equations 3 and 8
    fusion    the modules that join the branches: equations 4 to 7
    decoder   from four fused maps to a mask: section 3.3
    beyond/   parts that the paper does not have

Each file begins with the paper's statements (**P**, with section and equation) and our choices
where it is silent (**C**, with the reason); comments in the code have the same marks. The suffix of
a tensor's name is its shape: `map_BHWC` is (B, H, W, C), with the letters that the file's docstring
defines. Feature maps are channels-last (BHWC), as in Swin.
"""
