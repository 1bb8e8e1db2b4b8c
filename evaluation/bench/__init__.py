"""Timing on a GPU: the fused ops and the whole model against vanilla PyTorch, interleaved in one process."""
