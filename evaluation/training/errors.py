"""What goes wrong in a training run, by name."""


class TrainingError(RuntimeError):
    """A run that cannot go on, or not begin. Its message says at which step, and why."""


class Diverged(TrainingError):
    """A loss or a gradient that is not finite."""


class StepFailed(TrainingError):
    """A step that raised: in the tree, or for a tensor of a layout or shape that does not fit."""


class ResumeError(TrainingError):
    """A checkpoint that is of another run."""
