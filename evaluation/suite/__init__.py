"""Runs the suite on one tree in isolation and says whether the tree did what was declared for it."""
