"""The quantization-accuracy report: two models on the same rows, told apart."""
