"""The export to ONNX, and the build of TensorRT engines from it.

Weights enter; a graph or a plan leaves, and only one whose outputs equal the reference's.
"""
