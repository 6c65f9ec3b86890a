"""TIR kernels, one family a file."""
