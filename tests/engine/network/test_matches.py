"""Matches: two convolutions that add nothing before they are trained."""

from __future__ import annotations

import torch

from prompt_iml.engine.network.beyond.matches import Matches


def test_matches_add_nothing_at_first_and_then_a_map_of_their_size() -> None:
    matches, found_BFHW = Matches(8), torch.rand(2, 6, 32, 64)
    assert not matches(found_BFHW).any()
    torch.nn.init.normal_(matches.out.weight)
    out_BHWC = matches(found_BFHW)
    assert out_BHWC.shape == (2, 32, 64, 8)
    assert out_BHWC.any()
