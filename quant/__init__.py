"""ONNX graph in; quantized graph, QNN artifact and quality figures out. No CLI, no database."""
