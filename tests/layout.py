"""SPEC A7: what the checkpoints of RMSNormMMAttention-Triton hold, as key -> shape."""

from tests.cases import (
    BLOCK,
    BLOCK_CONDITIONED,
    BLOCK_CROSS,
    CROSS,
    NO_CONTEXT,
    SELF,
    TARGET,
    TARGET_STACK,
    Kind,
    Shape,
)

Layout = dict[str, tuple[int, ...]]

D, FEED_FORWARD, LAYERS = TARGET.dim, 3 * TARGET.dim + 1, 12
STREAM: Layout = {
    "to_qkv.weight": (3 * D, D),
    "to_qkv.bias": (3 * D,),
    "rms_norm_q.weight": (D,),
    "rms_norm_k.weight": (D,),
    "to_out.0.weight": (D, D),
    "to_out.0.bias": (D,),
    "to_out.1.weight": (D,),
}
MODULATION: Layout = {"adaLN_modulation.1.weight": (6 * D, D), "adaLN_modulation.1.bias": (6 * D,)}
NORMS: Layout = {"ln_1.weight": (D,), "ln_1.bias": (D,), "ln_2.weight": (D,), "ln_2.bias": (D,)}


def under(prefix: str, layout: Layout) -> Layout:
    return {prefix + key: shape for key, shape in layout.items()}


def mlp(hidden: int) -> Layout:
    return {"mlp.0.weight": (hidden, D), "mlp.0.bias": (hidden,), "mlp.2.weight": (D, hidden), "mlp.2.bias": (D,)}


def cross_block(hidden: int) -> Layout:
    stream = mlp(hidden) | MODULATION
    return under("cross_attn.", BOTH_STREAMS) | stream | under("context_layers.", stream)


BOTH_STREAMS = STREAM | under("c_", STREAM)
LAYOUTS: dict[str, tuple[Kind, Shape, Layout]] = {
    "self": (SELF, TARGET, STREAM),
    "cross-without-context": (NO_CONTEXT, TARGET, STREAM),
    "cross": (CROSS, TARGET, BOTH_STREAMS),
    "block": (BLOCK, TARGET, under("attn.", STREAM) | mlp(FEED_FORWARD) | NORMS),
    "block-conditioned": (
        BLOCK_CONDITIONED,
        TARGET,
        under("attn.", STREAM) | mlp(FEED_FORWARD) | MODULATION,
    ),
    "block-cross": (BLOCK_CROSS, TARGET, cross_block(FEED_FORWARD)),
    "stack-of-12": (
        TARGET_STACK,
        TARGET,
        {key: shape for n in range(LAYERS) for key, shape in under(f"layers.{n}.", cross_block(512)).items()},
    ),
}
