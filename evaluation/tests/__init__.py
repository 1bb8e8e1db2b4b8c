"""Grades the grader; the kata's own suite is tests/ at the top."""
