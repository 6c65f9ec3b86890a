"""Products of matrices: float32, compressed weights, int8, parts of 8 bits."""
