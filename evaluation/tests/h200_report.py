"""A report as a run on an H200 leaves it: medians, memory and launches as `evaluation.bench stack` measured them there
(torch 2.11.0, Triton 3.6.0), the spread of calls and rounds and the second process of before made up.
"""

from statistics import median
from typing import NamedTuple

from evaluation.bench.floor import OPERATIONS_PER_S
from evaluation.judge.intervals import compare, noise_floor, ratio_of
from evaluation.judge.record import CaseNumbers, Measure, Numerics, NumericsRun
from evaluation.judge.speed_cases import Plan, plans, work_of
from evaluation.judge.speed_record import CONFIDENCE, Kernel, Rates, Speed, SpeedCase, Timed, Worker
from evaluation.report.models import Report
from evaluation.report.speed_axis import speed_axis
from evaluation.suite.result import CaseResult, NotRun


class Measured(NamedTuple):
    """Of a batch: microseconds by worker and contender, the bytes that a call allocates, launches by kernel."""

    us: dict[tuple[Worker, str], float]
    peak_bytes: dict[Worker, int]
    launches: dict[str, int]


_CONTENDERS: tuple[tuple[Worker, str], ...] = (
    *(("before", name) for name in ("eager", "graph", "max_autotune")),
    *(("after", name) for name in ("eager", "graph")),
)
MEASURED = {
    1: Measured(
        dict(zip(_CONTENDERS, (25669.6, 2576.1, 989.84, 1758.5, 117.23), strict=True)),
        {"before": 912_384, "after": 1_186_304},
        {"modulation_kernel": 1, "qkv_kernel": 12, "joint_attention_kernel": 12, "rows_kernel": 12, "sum_kernel": 1},
    ),
    128: Measured(
        dict(zip(_CONTENDERS, (22508.8, 8980.4, 3135.3, 2002.7, 976.0), strict=True)),
        {"before": 118_554_624, "after": 69_206_016},
        {"modulation_kernel": 1, "qkv_kernel": 1, "joint_attention_kernel": 12, "rows_quad_kernel": 12},
    ),
}
RATES = Rates(operations_per_s=OPERATIONS_PER_S["bfloat16"], bytes_per_s=4.145e12)
_ROUNDS = (1.0, 0.953, 1.002, 0.951, 1.001, 0.998, 1.0)  # of the median
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
    """The cases without gradients that a full run times on a GPU."""
    chosen = [plan for plan in plans("cuda", quick=False) if plan.case.mode == "inference"]
    cases = tuple(_case(plan, MEASURED[plan.case.sizes.batch]) for plan in chosen)
    return Speed(what="fused", why=None, confidence=CONFIDENCE, seed=1, duration_seconds=412.0, cases=cases)


def _case(plan: Plan, measured: Measured) -> SpeedCase:
    timed = [_timed(worker, contender, measured) for worker, contender in _CONTENDERS]
    baseline, contender = (
        min((each for each in timed if each.worker == worker), key=lambda each: each.median_seconds)
        for worker in ("before", "after")
    )
    again = baseline.model_copy(update={"worker": "again", "rounds": baseline.rounds[1:] + baseline.rounds[:1]})
    refused = Timed(worker="before", contender="compiled", unmeasured="BackendCompilerFailed: RuntimeError: no memory")
    ratio, same = (ratio_of(baseline.rounds, other.rounds, seed=1) for other in (contender, again))
    floor, work = noise_floor([same]), work_of(plan.case, RATES)
    return SpeedCase(
        name=plan.case.name,
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
        own_kernels=tuple(measured.launches),
        contenders=(*timed, refused, again),
    )


def _timed(worker: Worker, contender: str, measured: Measured) -> Timed:
    middle = 1e-6 * measured.us[worker, contender]
    ordered = _ROUNDS if worker == "before" else reversed(_ROUNDS)
    rounds = tuple(tuple(middle * of_round * of_call for of_call in _SPREAD) for of_round in ordered)
    seconds = median(second for each in rounds for second in each)
    launches = measured.launches if worker == "after" else {}
    share = seconds / max(1, sum(launches.values()))
    return Timed(
        worker=worker,
        contender=contender,
        median_seconds=seconds,
        rounds=rounds,
        first_call_seconds=_FIRST_CALLS[contender],
        peak_bytes=measured.peak_bytes[worker],
        kernels=tuple(Kernel(name=name, seconds=share * n) for name, n in launches.items()) or None,
    )


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
