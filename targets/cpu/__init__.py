"""Kernels for x86 and ARM, through LLVM."""
