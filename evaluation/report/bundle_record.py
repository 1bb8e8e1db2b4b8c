"""The form of a bundle's bundle.json."""

from datetime import datetime
from typing import Literal

from evaluation.judge.scan import Finding
from evaluation.report.models import Environment, RunSettings
from evaluation.suite.result import Failure, Record, SuiteRun


class Sources(Record):
    """sha256 of the names and bytes of all files of each."""

    before: str
    after: str
    suite: str
    grader: str


class Bundle(Record):
    """All that a verdict rests on but the numeric cases, which lie beside it in the folder numerics."""

    schema_version: Literal["1.0"] = "1.0"
    run_id: str
    started_at: datetime
    duration_seconds: float
    settings: RunSettings
    environment: Environment
    findings: tuple[Finding, ...]
    before: SuiteRun
    after: SuiteRun
    grader_failures: tuple[Failure, ...]
    sha256: Sources
