"""The least time that a call of the stack can take, by what it must compute, move and exponentiate.

No launches, no waiting for one another, perfect overlap: at batch 1 far out of reach. A random mask saves nothing,
as hardly a tile is free of visible keys. B batch, S = L + C, D model dim, H heads, F feed-forward.
"""

from evaluation.bench.stack_record import Floor, Precision, StackCase, StackMachine

# Measured on an H200 with large matrix products: bf16 708 to 790 TFLOP/s, fp32 without TF32 60; TF32 is half of bf16.
CEILINGS_OF = "H200"
OPERATIONS_PER_S: dict[Precision, float] = {"bfloat16": 750e12, "float16": 750e12, "tf32": 375e12, "float32": 60e12}
# ex2.f32 and tanh, measured there too. Taking 3 of 8 from a polynomial instead gained up to 1.3x.
EXPONENTIALS_PER_CLOCK_AND_SM = 16
ITEM_BYTES: dict[Precision, int] = {"bfloat16": 2, "float16": 2, "tf32": 4, "float32": 4}
START_POS_BYTES = 8


def floor_of(case: StackCase, machine: StackMachine) -> Floor | None:
    """The floor of case on machine; None on a GPU whose ceilings have not been measured."""
    if CEILINGS_OF not in machine.gpu:
        return None
    operations, moved_bytes, exponentials = count_operations(case), count_bytes(case), count_exponentials(case)
    exponentials_per_s = EXPONENTIALS_PER_CLOCK_AND_SM * machine.sms * machine.sm_clock_mhz * 1e6
    return Floor(
        operations=operations,
        operations_us=operations / OPERATIONS_PER_S[case.dtype] * 1e6,
        moved_bytes=moved_bytes,
        moved_bytes_us=moved_bytes / machine.copy_gb_s / 1e3,
        exponentials=exponentials,
        exponentials_us=exponentials / exponentials_per_s * 1e6,
    )


def count_operations(case: StackCase) -> int:
    """Of all matrix products, two for each multiply-add: the streams' own, their modulation, attention."""
    dim, joint = case.dim, case.length + case.context
    of_a_row = 2 * dim * (4 * dim + 2 * case.feed_forward)  # QKV, output projection, MLP
    modulation = case.streams * (2 * dim * 6 * dim)
    attention = 4 * joint * joint * dim
    forward = case.layers * case.batch * (joint * of_a_row + modulation + attention)
    return 3 * forward if case.backward else forward  # of a product, both factors have gradients


def count_weights(case: StackCase) -> int:
    """Parameters of the model, each with its bias: QKV and projection, three norms, MLP, modulation, of each stream."""
    dim, hidden = case.dim, case.feed_forward
    stream = 4 * dim * (dim + 1) + 3 * dim + hidden * (dim + 1) + dim * (hidden + 1) + 6 * dim * (dim + 1)
    return case.layers * case.streams * stream


def count_bytes(case: StackCase) -> int:
    """Weights, x, y, context, mask and start positions read once, both outputs written once; nothing kept between."""
    streams = case.batch * (case.length + case.context) * case.dim
    elements = count_weights(case) + 2 * streams + case.batch * case.dim
    if case.backward:  # cotangents read, gradients written
        elements += count_weights(case) + 2 * streams + case.batch * case.dim
    masks = case.batch * (case.length * case.length + START_POS_BYTES) if case.masked else 0
    return elements * ITEM_BYTES[case.dtype] + masks


def count_exponentials(case: StackCase) -> int:
    """One for each of the softmax's weights and for each SiLU of the MLPs."""
    joint = case.length + case.context
    forward = case.layers * case.batch * joint * (case.heads * joint + case.feed_forward)
    return 2 * forward if case.backward else forward  # a backward has no room for what the forward had of them
