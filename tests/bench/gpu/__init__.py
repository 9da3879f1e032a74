"""Measurements on a GPU, in one command of at most eight minutes (`make gpu`).

It takes the PyTorch and the CUDA that it finds, fetches nothing, and imports neither Ray nor any
other package that PyTorch's own machines lack (`--list` prints what it needs). Each part is a
process with a time limit. With `--rehearse` the same parts run on a CPU, in small: the kernels in
the emulator, the engine on the device without a GPU.
"""
