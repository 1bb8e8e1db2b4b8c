"""Imports mmdit from a tree and says how that went: `import_tree.py RESULT TREE`, a nonce on stdin.

RESULT gets JSON: {"nonce"} once the import has returned, {"error", "message", "where"} when it raised.
Nothing is written when the import ended the process, so an early exit cannot look like a success.
"""

import json
import sys
import traceback
from pathlib import Path


def main() -> None:
    result, tree = sys.argv[1:]
    sys.path.insert(0, tree)
    try:
        import mmdit  # noqa: F401
    except Exception as error:
        outcome = _describe(error, tree)
    else:
        outcome = {"nonce": sys.stdin.read()}
    Path(result).write_text(json.dumps(outcome), encoding="utf-8")


def _describe(error: Exception, tree: str) -> dict[str, str]:
    """The error and the last place inside the tree that it passed through."""
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    message = str(error)
    if isinstance(error, SyntaxError):
        places.append(f"{error.filename}:{error.lineno}")
        message = str(error.msg)
    inside = [place.removeprefix(f"{tree}/") for place in places if place.startswith(f"{tree}/")]
    return {
        "error": "SyntaxError" if isinstance(error, SyntaxError) else type(error).__name__,
        "message": message,
        "where": inside[-1] if inside else "",
    }


if __name__ == "__main__":
    main()
