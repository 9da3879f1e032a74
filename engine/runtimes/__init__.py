"""Runtimes of an exported model behind one protocol: OpenVINO, ONNX Runtime, PyTorch, TensorRT.

Batches of tiles enter; mask logits and score logits leave.
"""

import sys

# With this package, `import openvino` reports itself to Google Analytics, and keeps an id of the
# user in ~/intel. Without it, OpenVINO takes a stub of its own.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
