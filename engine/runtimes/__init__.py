"""Runtimes of an exported model behind one protocol: OpenVINO, ONNX Runtime, PyTorch, TensorRT.

Batches of tiles enter; mask logits and score logits leave.
"""
