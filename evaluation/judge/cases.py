"""The numeric cases. Quick runs leave out those of `FULL`."""

from itertools import product

from evaluation.judge.case import Case, Kind, Sizes

TARGET = Sizes(2, 186, 64, 8, 16, hidden=512, layers=2)
WHOLE_TARGET = Sizes(1, 186, 64, 8, 16, hidden=512, layers=12)
SMALL = Sizes(2, 17, 5, 4, 16, layers=2)
ODD = Sizes(3, 65, 7, 5, 6, layers=2)
WIDE = Sizes(2, 17, 5, 2, 64)  # with relu(q) all but zero the normaliser's eps takes over; wide heads make that rare
SINGLE = Sizes(4, 1, 1, 4, 16)

_SOFTMAX: tuple[Kind, ...] = ("self", "cross", "block", "block-conditioned", "block-cross", "stack")
_LINEAR: tuple[Kind, ...] = ("self-linear", "cross-linear")
_FUNCTIONS: tuple[Kind, ...] = ("layernorm_adaln", "rmsnorm_adaln")

QUICK: tuple[Case, ...] = (
    *(Case(kind, SMALL) for kind in (*_SOFTMAX, *_FUNCTIONS)),
    *(Case(kind, WIDE) for kind in _LINEAR),
    *(Case(kind, ODD) for kind in ("cross", "block-cross", "layernorm_adaln", "rmsnorm_adaln")),
    Case("block-cross", SINGLE),
    Case("stack", TARGET),
    *(Case(kind, SMALL, dtype) for kind, dtype in product(("cross", "stack", *_FUNCTIONS), ("bfloat16", "float16"))),
    *(Case(kind, WIDE, "bfloat16", "inference") for kind in _LINEAR),
    *(Case(kind, SMALL, mode="autocast") for kind in ("self", "stack")),
    *(Case("stack", SMALL, dtype, "inference") for dtype in ("float32", "bfloat16", "float16")),
    *(Case("cross", SMALL, values=values) for values in ("large", "tiny", "outliers", "constant-rows")),
    *(Case("block-cross", SMALL, values=values) for values in ("large", "tiny", "outliers", "constant-rows")),
    *(Case(kind, SMALL, values="tiny") for kind in ("block", *_FUNCTIONS)),
    *(Case("cross", SMALL, mask=mask) for mask in ("causal", "empty-rows", "empty-columns", "padding", "all-empty")),
    *(Case("stack", SMALL, mask=mask, start="tensor") for mask in ("random", "float")),
    Case("self", ODD, mask="random", start="int"),
    Case("cross-linear", WIDE, mask="empty-rows", start="tensor"),
    *(Case("cross", SMALL, start=start) for start in ("int", "last", "tensor")),
    Case("self", SMALL, "bfloat16", start="last"),
    *(Case("cross", Sizes(1, x, c, 2, 16), mode="inference", values="needles") for x, c in ((128, 6), (17, 130))),
    *(Case(kind, SMALL, scenario="other-values-in-the-same-memory") for kind in ("cross", "stack", *_FUNCTIONS)),
    Case("stack", SMALL, mode="inference", scenario="other-values-in-the-same-memory"),
    *(Case("stack", SMALL, mode=m, scenario="other-weights-in-the-same-memory") for m in ("backward", "inference")),
    *(Case(kind, SMALL, scenario="permuted-context") for kind in ("cross", "stack")),
    *(Case(kind, SMALL, scenario="shifted-start") for kind in ("self", "block")),
    *(Case(kind, SMALL, scenario="one-sample-alone") for kind in ("cross", "stack")),
    *(Case(kind, SMALL, scenario="doubled-batch") for kind in ("self-linear", "stack")),
    *(Case(kind, SMALL, scenario="zero-modulation") for kind in ("block-conditioned", "stack")),
)
FULL: tuple[Case, ...] = (
    Case("stack", WHOLE_TARGET),
    Case("stack", WHOLE_TARGET, "bfloat16"),
    Case("stack", WHOLE_TARGET, "float16", "inference"),
    *(Case(kind, TARGET) for kind in _SOFTMAX if kind != "stack"),
    *(Case(kind, ODD, dtype) for kind, dtype in product(("block-cross", "block"), ("bfloat16", "float16"))),
    *(
        Case("cross", Sizes(2, length, context, 2, 16), mask=mask)
        for length, context, mask in product((15, 16, 63, 64, 65, 127, 129), (1, 64), ("none", "random"))
    ),
    Case("cross", Sizes(1, 186, 64, 2, 16), mode="inference", values="needles"),
    Case("cross", Sizes(1, 128, 6, 2, 16), "bfloat16", "inference", "needles"),
)


def cases(quick: bool) -> tuple[Case, ...]:
    """The cases of a run, in their order."""
    return QUICK if quick else (*QUICK, *FULL)
