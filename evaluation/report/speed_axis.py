"""The speed axis of the verdict, and what --require speed makes of it."""

from collections.abc import Collection

from evaluation.judge.speed_record import Speed, SpeedCase
from evaluation.report.models import Axis, Demand, Status
from evaluation.suite.result import Failure, FailureKind

_WRONG = frozenset({FailureKind.SPEED_FORGED, FailureKind.TIMED_OUTPUT_WRONG})
_NO_GPU = "no GPU here, so the fused path was not timed; its fallback on the CPU, which is not that"


def speed_axis(speed: Speed, failures: tuple[Failure, ...]) -> Axis:
    """Of the fused path: pass where every case is faster, fail where one is slower or took no kernels of its own."""
    wrong = [each for each in failures if each.kind in _WRONG and each.tree == "after"]
    if wrong:
        return Axis(status="fail", reason=wrong[0].message)
    if speed.why is not None:
        return Axis(status="not_measured", reason=speed.why)
    told = "; ".join(_told(case) for case in speed.cases)
    if speed.what == "fallback":
        return Axis(status="not_measured", reason=f"{_NO_GPU}: {told}")
    return Axis(status=_status(speed.cases), reason=told)


def unmet(require: Collection[Demand], axis: Axis) -> tuple[Failure, ...]:
    """What was demanded of speed and is not there."""
    if "speed" not in require or axis.status == "pass":
        return ()
    if axis.status == "not_measured":
        return (Failure(kind=FailureKind.SPEED_NOT_MEASURED, tree=None, message=f"--require speed: {axis.reason}"),)
    return (Failure(kind=FailureKind.SPEED_NOT_SHOWN, tree="after", message=f"--require speed: {axis.reason}"),)


def _status(cases: tuple[SpeedCase, ...]) -> Status:
    if any(case.outcome == "not_measured" for case in cases):
        return "not_measured"
    if any(case.path == "fallback" or case.outcome == "slower" for case in cases):
        return "fail"
    return "pass" if all(case.outcome == "faster" and case.path == "fused" for case in cases) else "inconclusive"


def _told(case: SpeedCase) -> str:
    """One case in a line; that after fell back is said first."""
    if case.why is not None:
        return f"{case.name}: not measured: {case.why}"
    paths = {
        "fallback": "",
        "mixed": "partly by kernels of its own, ",
        "unknown": "by kernels that nobody could name, ",
        "fused": "",
    }
    fell_back = case.path == "fallback" and any(each.kernels for each in case.contenders)
    path = "it launched no kernel of its own, which is a silent fallback; " if fell_back else paths[case.path]
    how = f"before's {case.baseline} takes {case.ratio} times the time of after's {case.contender}"
    return f"{case.name}: {path}{case.outcome}: {how}, where {case.noise_floor:.3g} may be noise"
