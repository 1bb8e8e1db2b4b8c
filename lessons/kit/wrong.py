"""An entry of a lesson's gallery of wrong answers."""

from typing import NamedTuple


class Wrong(NamedTuple):
    """A mistake that learners make: `old`, once in the lesson's file, replaced by `new`.

    The graded cell `fails` (its grade_id) must then fail, with `says` in its message.
    """

    mistake: str
    old: str
    new: str
    fails: str
    says: str
