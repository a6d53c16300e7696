"""Models from ONNX files: their nodes run as torch functions, so they capture and execute."""
