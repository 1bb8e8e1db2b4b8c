"""A course from RMSNorm to a fused MMDiT block and its verdict; lessons/README.md says how to take it."""
