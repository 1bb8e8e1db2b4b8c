"""The grader is graded: candidates that are wrong, that cheat, and that are honest but look odd."""
