"""Timing on a GPU: the fused ops against vanilla PyTorch, eager and compiled, interleaved in one process."""
