"""What a tree computes, judged by the grader's own fp64 oracle. Nothing here ever imports a candidate."""
