"""The export to ONNX, and the build of TensorRT engines from it.

Weights enter; a graph or a plan leaves, but only if its outputs agree with the reference's.
"""
