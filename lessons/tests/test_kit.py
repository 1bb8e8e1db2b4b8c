"""The kit: what its checks say, and that its measurements measure."""

import pytest
import torch
import triton
import triton.language as tl

from lessons.kit import Mismatch, check, expect, launches, peak_bytes, poisoned, registers, roofline, seconds


@triton.jit
def add_one(b_x):
    return b_x + 1.0


@triton.jit
def increment_kernel(p_x, p_out, N, BLOCK: tl.constexpr):
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + o_n, add_one(tl.load(p_x + o_n, mask=o_n < N)), mask=o_n < N)


@triton.jit
def product_kernel(p_x, p_out, BLOCK: tl.constexpr):
    o_x = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    b_x = tl.load(p_x + o_x)
    tl.store(p_out + o_x, tl.dot(b_x, b_x))


def increment(x):
    out = torch.empty_like(x)
    increment_kernel[(2,)](x, out, x.numel(), BLOCK=8)
    return out


def message(call, *args, **kwargs):
    with pytest.raises(Mismatch) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_a_right_tensor_is_named_and_its_error_printed(capsys):
    check("twice", torch.tensor([2.0, 4.0]), torch.tensor([2.0, 4.0]), hint="-")
    assert capsys.readouterr().out == "ok  twice  error 0.0e+00\n"


def test_a_wrong_value_is_shown_with_its_place_and_the_hint():
    expected = torch.arange(6.0).reshape(2, 3) + 1
    got = expected.clone()
    got[1, 0] = 9.0
    said = message(check, "rows", got, expected, hint="eps goes under the root")
    for part in ("rows", "(2, 3)", "float32", "[1, 0]", "expected 4", "got 9", "1 of 6", "eps goes under the root"):
        assert part in said


def test_one_small_wrong_row_is_found_at_the_tolerance():
    expected = torch.ones(100, 10)
    got = expected.clone()
    got[50] *= 1 + 2e-4
    check("rows", got, expected, tolerance=1e-3, hint="-")
    assert "[50, 0]" in message(check, "rows", got, expected, hint="-")


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (torch.ones(2), "expected shape (3,), got (2,)"),
        (torch.ones(3).half(), "expected dtype torch.float32, got torch.float16"),
        (torch.tensor([1.0, float("nan"), 1.0]), "NaN or Inf"),
        (torch.tensor([1.0, 1.0, float("inf")]), "[2]"),
        (None, "expected a tensor, got NoneType"),
    ],
)
def test_what_cannot_be_compared_is_said(got, says):
    said = message(check, "ones", got, torch.ones(3), hint="mind the dtype")
    assert says in said
    assert "mind the dtype" in said


def test_an_oracle_that_is_not_finite_is_an_error_of_the_lesson():
    with pytest.raises(ValueError, match="expected finite values"):
        check("ones", torch.ones(1), torch.tensor([float("nan")]), hint="-")


def test_against_zeros_the_error_is_absolute():
    check("zeros", torch.full((3,), 1e-6), torch.zeros(3), hint="-")
    assert "got 1" in message(check, "zeros", torch.ones(3), torch.zeros(3), hint="-")


def test_a_fact_is_printed_or_raised(capsys):
    expect(1 + 1 == 2, "expected 2, got 2")
    assert capsys.readouterr().out == "ok  expected 2, got 2\n"
    assert message(expect, 1 + 1 == 3, "expected 3, got 2") == "expected 3, got 2"


def test_poison_surrounds_the_values():
    x = torch.randn(2, 3)
    view = poisoned(x, 2)
    assert torch.equal(view, x)
    assert view.stride() == (5, 1)
    assert view.as_strided((4, 5), (5, 1)).isnan().sum() == 20 - 6
    assert poisoned(torch.zeros(2, dtype=torch.bool), 1).as_strided((3,), (1,)).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="int64"):
        poisoned(torch.arange(3), 1)


def test_memory_is_counted_at_its_peak():
    def call(x):
        doubled = x * 2
        del doubled
        return x + 1

    x = torch.randn(1024)
    assert 4096 <= peak_bytes(call, x) < 2 * 4096
    assert 2 * 4096 <= peak_bytes(lambda: x * 2 + 1) < 3 * 4096


def test_launches_are_named_in_order():
    x = torch.randn(13)
    assert launches(lambda: check("x + 2", increment(increment(x)), x + 2, hint="-")) == ["increment_kernel"] * 2


def test_times_of_the_interpreter_are_not_given(capsys):
    assert seconds(increment, torch.randn(3)) is None
    assert "mean nothing" in capsys.readouterr().out


def test_the_roofline_is_in_microseconds():
    assert roofline(4.15e6, 750e6, 0) == pytest.approx({"bytes": 1.0, "operations": 1.0, "exponentials": 0.0})


def test_a_kernel_is_compiled_for_sm_90_with_what_it_calls():
    compiled = registers(increment_kernel, {"p_x": "*fp32", "p_out": "*fp32", "N": "i32"}, {"BLOCK": 256})
    assert 0 < compiled.registers < 64
    assert (compiled.spills, compiled.shared_bytes, compiled.tensor_core) == (0, 0, False)
    product = registers(product_kernel, {"p_x": "*fp16", "p_out": "*fp32"}, {"BLOCK": 64})
    assert product.tensor_core
    assert product.shared_bytes > 0


def test_arguments_that_are_not_the_kernels_are_named():
    with pytest.raises(ValueError, match=r"BLOCK.*got \['p_x'\]"):
        registers(product_kernel, {"p_x": "*fp16"}, {})
