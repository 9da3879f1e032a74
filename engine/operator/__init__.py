"""Kernels of `promptiml::MSDeformAttn`: one arithmetic (`ms_deform_attn.h`), a body a device."""
