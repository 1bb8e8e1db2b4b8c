"""Training both trees on the same data from the same weights, and whether they learn the same."""
