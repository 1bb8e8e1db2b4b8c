"""A report as a run on an H200 leaves it, made of the record of `evaluation.bench stack`: times, memory and kernels are
the record's, the calls within a round and the second process of before are made up.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from evaluation.bench.floor import OPERATIONS_PER_S
from evaluation.bench.stack_record import StackContender, StackRecord, StackResult
from evaluation.judge.intervals import compare, noise_floor, ratio_of
from evaluation.judge.record import CaseNumbers, Measure, Numerics, NumericsRun
from evaluation.judge.speed_cases import plans, work_of
from evaluation.judge.speed_record import CONFIDENCE, Kernel, Rates, Speed, SpeedCase, Timed, Worker
from evaluation.report.models import Report
from evaluation.report.speed_axis import speed_axis
from evaluation.suite.result import CaseResult, NotRun

RECORD = Path(__file__).resolve().parents[1] / "records" / "h200" / "stack.json"
_NAMES: dict[StackContender, tuple[Worker, str]] = {
    "eager": ("before", "eager"),
    "eager_graph": ("before", "graph"),
    "max_autotune": ("before", "max_autotune"),
    "fused": ("after", "eager"),
    "fused_graph": ("after", "graph"),
}
_SPREAD = (1.0, 1.004, 0.997, 1.011, 0.999, 1.002, 1.03, 0.998)  # of the calls of a round
_FIRST_CALLS = {"max_autotune": 187.0, "graph": 0.9, "eager": 0.4}


def h200_report(passing: Report) -> Report:
    """`passing`, with the timed cases of an H200, as many tests as the suite has, and the names that it gives them."""
    speed = h200_speed()
    gpu = {"gpus": ("NVIDIA H200",), "cuda_version": "13.0", "torch_version": "2.11.0+cu130", "triton_version": "3.6.0"}
    verdict = passing.verdict.model_copy(update={"speed": speed_axis(speed, ())})
    after = passing.results.after.model_copy(update={"tests": _tests(1500), "not_run": _left(24)})
    return passing.model_copy(
        update={
            "speed": speed,
            "verdict": verdict,
            "numerics": _numerics(),
            "environment": passing.environment.model_copy(update=gpu),
            "results": passing.results.model_copy(update={"after": after}),
        }
    )


def h200_speed() -> Speed:
    """The cases that a full run times on a GPU."""
    record = StackRecord.model_validate_json(RECORD.read_bytes())
    found = {result.case.batch: result for result in record.results}
    cases = []
    for plan in plans("cuda", quick=False):
        batch = plan.case.sizes.batch
        rates = Rates(operations_per_s=OPERATIONS_PER_S["bfloat16"], bytes_per_s=record.machine.copy_gb_s * 1e9)
        cases.append(_case(plan.case.name, found[batch], rates=rates, work=work_of(plan.case, rates)))
    return Speed(what="fused", why=None, confidence=CONFIDENCE, seed=1, duration_seconds=412.0, cases=tuple(cases))


def _case(name: str, result: StackResult, rates: Rates, work: object) -> SpeedCase:
    timed = [_timed(result, name) for name in _NAMES]
    baseline = min((each for each in timed if each.worker == "before"), key=lambda each: each.median_seconds)
    contender = min((each for each in timed if each.worker == "after"), key=lambda each: each.median_seconds)
    again = baseline.model_copy(update={"worker": "again", "rounds": baseline.rounds[1:] + baseline.rounds[:1]})
    refused = Timed(worker="before", contender="compiled", unmeasured="BackendCompilerFailed: RuntimeError: no memory")
    ratio, same = (ratio_of(baseline.rounds, other.rounds, seed=1) for other in (contender, again))
    floor = noise_floor([same])
    return SpeedCase(
        name=name,
        outcome=compare([ratio], floor),
        why=None,
        baseline=baseline.contender,
        contender=contender.contender,
        ratio=ratio,
        host_ratio=ratio,
        same=(same, same),
        noise_floor=floor,
        least_seconds=work.least_seconds,
        work=work,
        path="fused",
        own_kernels=tuple(kernel.name for kernel in contender.kernels),
        contenders=(*timed, refused, again),
    )


def _timed(result: StackResult, name: StackContender) -> Timed:
    worker, contender = _NAMES[name]
    rounds = tuple(tuple(us * 1e-6 * share for share in _SPREAD) for us in result.timing(name).rounds_us)
    seconds = median(second for each in rounds for second in each)
    kernels = _kernels(result, seconds) if worker == "after" else ()
    return Timed(
        worker=worker,
        contender=contender,
        median_seconds=seconds,
        rounds=rounds,
        first_call_seconds=_FIRST_CALLS[contender],
        peak_bytes=result.fused.peak_bytes if worker == "after" else result.eager_peak_bytes,
        kernels=kernels or None,
    )


def _kernels(result: StackResult, seconds: float) -> Sequence[Kernel]:
    launches = sum(each.count for each in result.fused.launches)
    return tuple(Kernel(name=x.name, seconds=seconds * x.count / launches) for x in result.fused.launches)


def _tests(count: int) -> tuple[CaseResult, ...]:
    name = "tests/test_attention_{}.py::test_a_row_without_a_visible_key_gives_zero[B3-L37-C5-H3-D32-bfloat16-{}]"
    return tuple(
        CaseResult(
            nodeid=name.format(n % 20, n),
            name=f"test {n}",
            outcome="passed",
            expectation="upgrade" if n % 3 else "contract",
            duration_seconds=0.1,
        )
        for n in range(count)
    )


def _left(count: int) -> tuple[NotRun, ...]:
    name = "tests/test_kernels.py::test_a_kernel_on_two_gpus[{}]"
    return tuple(NotRun(nodeid=name.format(n), reason="needs 2 GPUs", expectation="upgrade") for n in range(count))


def _numerics() -> Numerics:
    def case(number: int) -> CaseNumbers:
        worst = Measure(name="0.d.context_layers.mlp.0.weight", error=3.1e-3 * (1 + number % 9) / 10, bound=3.7e-3)
        name = f"block-cross B3-L65-C7-H5-D6 bfloat16 backward causal start=tensor {number}"
        return CaseNumbers(name=name, status="pass", worst=worst, problems=())

    run = NumericsRun(cases=tuple(case(number) for number in range(140)), duration_seconds=31.0)
    return Numerics(seed=2**61, before=run, after=run)
