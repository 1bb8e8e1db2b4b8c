"""Findings of the static scan as SARIF 2.1.0, which code viewers show at their lines."""

import json
from typing import Any

from evaluation.judge.scan import RULES, Finding


def to_sarif(findings: tuple[Finding, ...]) -> str:
    """A log of one run; every finding is a note."""
    rules = [{"id": rule, "shortDescription": {"text": text}} for rule, text in RULES.items()]
    document = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "mmdit-kata-scan", "rules": rules}},
                "results": [_result(each) for each in findings],
            }
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def _result(finding: Finding) -> dict[str, Any]:
    place = {"artifactLocation": {"uri": finding.file}, "region": {"startLine": finding.line}}
    return {
        "ruleId": finding.rule,
        "level": "note",
        "message": {"text": f"{finding.message}: {RULES[finding.rule]}"},
        "locations": [{"physicalLocation": place}],
    }
