"""What kernels of all backends are written with: the emitter, polynomials, scalar arithmetic, shapes."""
