"""The numeric judge on tensors made by hand: what is right passes, and each way to be wrong is told as what it is."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from evaluation.judge.case import Case, Sizes
from evaluation.judge.compare import Tensors, digest, errors, judge_case, truth_of
from evaluation.judge.draw import Drawn, draw
from evaluation.judge.plan import CallFacts, CaseFacts, OutputFacts
from evaluation.judge.record import CaseNumbers

SIZES = Sizes(2, 5, 3, 2, 4)
CROSS = Case("cross", SIZES)
AGAIN = replace(CROSS, scenario="other-values-in-the-same-memory")


class Worker:
    """What a perfect worker hands back: the truth, rounded to the case's dtype."""

    def __init__(self, case: Case) -> None:
        self.drawn: Drawn = draw(case, seed=3)
        self.truth = truth_of(self.drawn)
        self.tensors: dict[str, Tensor] = {n: t.to(getattr(torch, case.dtype)) for n, t in self.truth.items()}
        self.vanilla: dict[str, float] | None = errors(self.truth, self.tensors)
        self.told = CaseFacts(
            weights={n: digest(t) for n, t in self.drawn.weights[self.drawn.calls[-1].weights].items()},
            facts={str(n): self.facts(n) for n in range(len(self.drawn.calls))},
        )

    def facts(self, number: int) -> CallFacts:
        call = self.drawn.calls[number]
        given = dict(call.inputs) | ({} if call.attn_mask is None else {"attn_mask": call.attn_mask})
        outputs = [n.split(".", 1)[1] for n in self.truth if n.startswith(f"{number}.") and ".d." not in n]
        return CallFacts(
            result="AttentionOutput",
            fields=["x_out", "context_out"],
            outputs={
                name: OutputFacts(type="torch.Tensor", device="cpu", contiguous=True, digest="") for name in outputs
            },
            inputs={name: digest(t) for name, t in given.items()},
        )

    def judged(self, truth: Tensors | None = None) -> CaseNumbers:
        """After whatever a test did to `tensors`, as if they had been returned like that."""
        for number, call in self.told.facts.items():
            for name, output in call.outputs.items():
                output.digest = digest(self.tensors[f"{number}.{name}"])
        return judge_case(self.drawn, truth or self.truth, self.told, self.tensors, self.vanilla)


@pytest.mark.parametrize("case", [CROSS, AGAIN, replace(CROSS, dtype="bfloat16"), Case("stack", SIZES)], ids=str)
def test_the_truth_rounded_once_passes(case: Case):
    judged = Worker(case).judged()
    assert (judged.status, judged.problems) == ("pass", ())
    assert judged.worst.error <= judged.worst.bound


def scaled(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda t: t * factor


WRONG_TENSORS: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "a little off": ("0.x_out", scaled(1 + 1e-4), "0.x_out: relative L2 error 1.0e-04, allowed 4.0e-06"),
    "a gradient off": ("0.d.w.to_qkv.bias", scaled(1.001), "0.d.w.to_qkv.bias: relative L2 error"),
    "one row off": ("0.x_out", lambda t: t.index_fill(1, torch.tensor(2), 7.0), "0.x_out: relative L2 error"),
    "zeros": ("0.context_out", torch.zeros_like, "0.context_out is all zeros"),
    "a constant": ("0.x_out", lambda t: torch.full_like(t, 0.5), "0.x_out is one constant"),
    "NaN": ("0.d.x", lambda t: t.index_fill(0, torch.tensor(0), torch.nan), "0.d.x holds NaN"),
    "infinity": ("0.x_out", scaled(1e39), "0.x_out holds infinity"),
    "another shape": ("0.x_out", lambda t: t[:, :-1], "0.x_out has shape (2, 4, 8), expected (2, 5, 8)"),
    "another dtype": ("0.x_out", lambda t: t.double(), "0.x_out is torch.float64, expected torch.float32"),
}


@pytest.mark.parametrize(("name", "change", "problem"), WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_a_wrong_tensor_is_told_by_name_and_reason(name: str, change: Callable[[Tensor], Tensor], problem: str):
    worker = Worker(CROSS)
    worker.tensors[name] = change(worker.tensors[name])
    judged = worker.judged()
    assert judged.status == "fail"
    assert judged.problems[0].startswith(problem)


def test_one_wrong_row_among_many_fails_in_16_bits_where_the_whole_would_not():
    worker = Worker(Case("cross", Sizes(8, 129, 64, 2, 4), "bfloat16", "inference"))
    worker.tensors["0.x_out"][3, 128] *= 1.2
    (problem,) = worker.judged().problems
    assert problem.startswith("0.x_out row: relative L2 error 2.0e-01")


def test_a_tensor_that_did_not_come_back_is_missed():
    worker = Worker(CROSS)
    del worker.tensors["0.d.context"]
    assert worker.judged().problems == ("0.d.context did not come back",)


@pytest.mark.parametrize(
    ("fact", "value", "problem"),
    [
        ("type", "mmdit.lazy.Later", "0.x_out is a mmdit.lazy.Later, expected torch.Tensor"),
        ("device", "meta", "0.x_out is on meta, expected cpu"),
        ("contiguous", False, "0.x_out is not contiguous"),
    ],
)
def test_an_output_of_another_form_is_refused(fact: str, value: object, problem: str):
    worker = Worker(CROSS)
    setattr(worker.told.facts["0"].outputs["x_out"], fact, value)
    assert worker.judged().problems == (problem,)


def test_an_output_that_changed_after_it_was_returned_is_refused():
    worker = Worker(CROSS)
    worker.judged()
    worker.tensors["0.x_out"] = worker.tensors["0.x_out"].nextafter(torch.tensor(9.0))
    judged = judge_case(worker.drawn, worker.truth, worker.told, worker.tensors, worker.vanilla)
    assert judged.problems == ("0.x_out changed after it was returned",)


def test_a_call_that_told_nothing_is_refused():
    worker = Worker(CROSS)
    del worker.told.facts["0"]
    assert "call 0 told nothing" in worker.judged().problems


def test_a_plain_tuple_is_refused():
    worker = Worker(CROSS)
    worker.told.facts["0"].result, worker.told.facts["0"].fields = "tuple", []
    assert worker.judged().problems == ("call 0 gave a tuple, expected the named tuple (x_out, context_out)",)


def test_a_changed_input_or_weight_is_told():
    worker = Worker(CROSS)
    worker.told.facts["0"].inputs["x"] = "0"
    worker.told.weights["to_qkv.bias"] = "0"
    assert worker.judged().problems == ("call 0 changed its input x", "the calls changed the weight to_qkv.bias")


def test_the_same_call_must_give_the_same_bits():
    worker = Worker(AGAIN)
    worker.tensors["2.x_out"] = worker.tensors["2.x_out"].nextafter(torch.tensor(9.0))
    assert worker.judged().problems == ("x_out: the same call gives the same bits does not hold bit for bit",)


def test_an_output_that_a_later_call_overwrote_is_wrong():
    worker = Worker(AGAIN)
    worker.tensors["0.x_out"] = worker.tensors["1.x_out"]
    assert worker.judged().problems[0].startswith("0.x_out: relative L2 error 1.")


def test_laws_are_held_between_outputs_as_well():
    worker = Worker(replace(CROSS, scenario="permuted-context"))
    truth = worker.truth | {"1.context_out": worker.truth["0.context_out"]}
    worker.tensors["1.context_out"] = worker.tensors["0.context_out"]
    judged = worker.judged(truth)
    (problem,) = judged.problems
    assert problem.startswith("context_out: permuting the context permutes its output and leaves x does not hold")


def test_a_modulation_of_zero_must_be_the_identity_bit_for_bit():
    worker = Worker(Case("stack", SIZES, scenario="zero-modulation"))
    assert worker.judged().status == "pass"
    worker.tensors["0.x_out"] = worker.tensors["0.x_out"] + 1e-6
    assert worker.judged().problems == ("a modulation of zero is not the identity",)


def test_before_itself_is_held_to_the_ceiling():
    worker = Worker(CROSS)
    worker.vanilla = None
    worker.tensors["0.x_out"] *= 1 + 5e-6
    assert worker.judged().status == "pass"
    worker.tensors["0.x_out"] *= 1.01
    assert worker.judged().status == "fail"


def test_values_follow_from_the_seed_and_the_case_alone():
    first, again, other = draw(CROSS, 1), draw(CROSS, 1), draw(CROSS, 2)
    assert torch.equal(first.calls[0].inputs["x"], again.calls[0].inputs["x"])
    assert not torch.equal(first.calls[0].inputs["x"], other.calls[0].inputs["x"])
    assert not torch.equal(first.calls[0].inputs["x"], draw(Case("self", SIZES), 1).calls[0].inputs["x"])
