"""Check that every lesson keeps the course's rules."""

import argparse
import os
import sys

from lessons.lesson import find_lessons
from lessons.rules import RULES


def main(arguments: list[str] | None = None) -> int:
    epilog = "\n".join(["rules:", *[f"  {name:14} {rule.__doc__}" for name, rule in RULES.items()]])
    parser = argparse.ArgumentParser(
        "python -m lessons.check", None, __doc__, epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lesson", nargs="*", help="number or name of a lesson; none: all of them")
    options = parser.parse_args(arguments)
    course = find_lessons()
    try:
        lessons = find_lessons(options.lesson)
    except ValueError as error:
        parser.error(str(error))
    found = 0
    for lesson in lessons:
        for name, rule in RULES.items():
            for line, text in rule(lesson, course):
                found += 1
                print(f"{os.path.relpath(lesson.path)}:{line}: {name}: {text}")
    print(f"{len(lessons)} lessons checked by {len(RULES)} rules: {found} findings")
    return 1 if found or not lessons else 0


if __name__ == "__main__":
    sys.exit(main())
