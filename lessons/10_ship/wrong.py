"""Mistakes that learners make in this lesson, each with the cell that must catch it and what the message must say."""

from lessons.kit.wrong import Wrong

WRONG = (
    Wrong(
        "an upgrade test may pass on before",
        old='    if before == "passed":\n        return "upgrade_passed_on_before"\n',
        new="",
        fails="10-ship-judge-test",
        says="it passes without your work",
    ),
    Wrong(
        "whatever did not fail passed",
        old='return None if before == after == "passed" else "contract_failed"',
        new='return "contract_failed" if "failed" in (before, after) else None',
        fails="10-ship-judge-test",
        says="only passed is a pass",
    ),
    Wrong(
        "a test that was not run passed",
        old='        return "missing_tests"\n',
        new="        return None\n",
        fails="10-ship-judge-test",
        says="it ran on one tree only",
    ),
    Wrong(
        "failures in the order of the report",
        old='sorted(report["failures"], key=urgency)',
        new='report["failures"]',
        fails="10-ship-read-test",
        says="what to mend first",
    ),
    Wrong(
        "failures without the tests' own messages",
        old="{messages.get(name) or ''}",
        new="{failure['message']}",
        fails="10-ship-read-test",
        says="the first test and its message",
    ),
    Wrong(
        "a tree whose seams stay empty",
        old='*(["--fill", *lessons] if lessons else [])',
        new="*[]",
        fails="10-ship-tree-test",
        says="seams filled",
    ),
    Wrong(
        "a probe without kernels",
        old=', TRITON_INTERPRET="1")',
        new=")",
        fails="10-ship-tree-test",
        says="seams filled",
    ),
)
