"""Scripts that the grader starts in a process of their own: the only code of ours that a candidate shares."""
