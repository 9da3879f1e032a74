"""Prompt-IML (arXiv 2401.00653): RGB pixels in, mask logits and the logit of a score out.

To be read in this order:

    config    the sizes, and which of them the paper states
    model     the whole: the paper's figure 2
    stems     from pixels to tokens: equations 1 and 2
    swin      the layers of both branches, and the prompts: equations 3 and 8
    fusion    what joins the branches: equations 4 to 7
    decoder   from four fused maps to a mask: section 3.3
    beyond/   what the paper does not have

Each file begins with what the paper states (**P**, with section and equation) and what we chose
where it is silent (**C**, with the reason); the same marks stand beside the lines they are about.
A suffix of a tensor's name is its shape: `map_BHWC` is (B, H, W, C), and the file's docstring says
what the letters count. Feature maps are channels-last (BHWC), as Swin has them.
"""
