"""Triton kernels: what fxdp's ops run on a CUDA device, where triton is installed."""
