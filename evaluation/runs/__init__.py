"""The command over the run store: list, show, compare, gate, history, export, reindex, prune, tag."""
