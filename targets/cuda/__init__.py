"""Kernels for NVIDIA GPUs: TIR with thread bindings, turned into CUDA C++ by TVM and into a fatbin by nvcc."""
