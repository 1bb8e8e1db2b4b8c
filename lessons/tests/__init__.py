"""Tests of the lessons and of the tools that build, run, grade and check them."""
