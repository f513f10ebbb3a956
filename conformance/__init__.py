"""Equal to Keras, PyTorch, Flax, ONNX, TensorFlow and NumPy, case by case, and who is right where they differ."""
