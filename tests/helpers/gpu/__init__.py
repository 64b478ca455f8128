"""Stand-ins for CUDA, TensorRT and ONNX Runtime on CUDA, and what the checks of a GPU share."""
