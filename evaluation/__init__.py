"""The grader: runs the suite on two trees, judges what each did, and writes the verdict."""
