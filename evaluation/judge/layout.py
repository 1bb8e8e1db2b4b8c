"""How each kind of module is made by its public name, and the shapes of its weights (SPEC A7)."""

from typing import Any

from evaluation.judge.case import CONDITIONED, FUNCTIONS, JOINT, LINEAR, Case

Layout = dict[str, tuple[int, ...]]


def construction(case: Case) -> dict[str, Any]:
    """The public name, and the arguments to make it with; of a stack those of its configuration."""
    sizes = case.sizes
    if case.kind in FUNCTIONS:
        return {"function": case.kind}
    if case.kind == "self" or case.kind == "self-linear":
        arguments = {"dim": sizes.dim, "num_head": sizes.heads, "linear": case.kind in LINEAR}
        return {"name": "RMSNormSelfAttention", "arguments": arguments}
    if case.kind in ("cross", "cross-linear"):
        arguments = {"dim": sizes.dim, "num_head": sizes.heads, "use_context": True, "linear": case.kind in LINEAR}
        return {"name": "RMSNormSelfCrossAttention", "arguments": arguments}
    block = {
        "dim_base": sizes.dim,
        "num_attn_head": sizes.heads,
        "dim_feedforward": sizes.feed_forward,
        "conditioning": case.kind in CONDITIONED,
        "use_cross_attn": case.kind in JOINT,
    }
    if case.kind == "stack":
        return {"name": "MMDiT", "configuration": block | {"num_layers": sizes.layers}}
    return {"name": "MMDiTBlock", "arguments": block}


def layout(case: Case) -> Layout:
    """Every weight of the case's module by its key of the state_dict."""
    if case.kind in FUNCTIONS:
        return {}
    if case.kind == "stack":
        one = _block(case)
        return {f"layers.{n}.{key}": size for n in range(case.sizes.layers) for key, size in one.items()}
    if case.kind.startswith("block"):
        return _block(case)
    return _attention(case.sizes.dim, case.kind in JOINT)


def _attention(dim: int, joint: bool) -> Layout:
    one = {
        "to_qkv.weight": (3 * dim, dim),
        "to_qkv.bias": (3 * dim,),
        "rms_norm_q.weight": (dim,),
        "rms_norm_k.weight": (dim,),
        "to_out.0.weight": (dim, dim),
        "to_out.0.bias": (dim,),
        "to_out.1.weight": (dim,),
    }
    return one | ({f"c_{key}": size for key, size in one.items()} if joint else {})


def _block(case: Case) -> Layout:
    dim, hidden, joint = case.sizes.dim, case.sizes.feed_forward, case.kind in JOINT
    stream: Layout = {
        "mlp.0.weight": (hidden, dim),
        "mlp.0.bias": (hidden,),
        "mlp.2.weight": (dim, hidden),
        "mlp.2.bias": (dim,),
    }
    if case.kind in CONDITIONED:
        stream |= {"adaLN_modulation.1.weight": (6 * dim, dim), "adaLN_modulation.1.bias": (6 * dim,)}
        norms: Layout = {}
    else:
        norms = {f"ln_{n}.{name}": (dim,) for n in (1, 2) for name in ("weight", "bias")}
    attention = {f"{'cross_attn' if joint else 'attn'}.{key}": size for key, size in _attention(dim, joint).items()}
    return (
        attention | stream | norms | ({f"context_layers.{key}": size for key, size in stream.items()} if joint else {})
    )
