"""A tree small enough to grade in a second; it lacks the upgrade."""


def area(side: float) -> float:
    return side * side
