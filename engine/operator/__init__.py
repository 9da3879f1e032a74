"""Kernels of `promptiml::MSDeformAttn` for CPU and GPU, which share `ms_deform_attn.h`, and one for
the search of matches on the CPU.
"""
