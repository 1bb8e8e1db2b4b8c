"""What the store raises."""

from evaluation.suite.result import GraderError


class StoreError(GraderError):
    """The store, or a run in it, is not as it must be for what was asked."""


class CheckpointMismatch(StoreError):
    """A checkpoint that does not fit. `differences` has a line for each thing that differs."""

    def __init__(self, file: str, differences: list[str]) -> None:
        super().__init__("\n  ".join((f"{file} does not fit, in {len(differences)} places:", *differences)))
        self.differences = differences
