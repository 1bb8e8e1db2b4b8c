"""The weights of a stack, as the fused inference takes them, and of which modules it can take them.

D model dim, F feed-forward.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mmdit.attention import RMS_EPS, RMSNormSelfAttention, RMSNormSelfCrossAttention
from mmdit.norm import RMSNorm
from mmdit.rotary import RotaryEmbedding


class StreamWeights(NamedTuple):
    """One stream of one layer."""

    qkv_weight: Tensor  # (3 D, D)
    qkv_bias: Tensor  # (3 D,)
    query_norm: Tensor  # (D,)
    key_norm: Tensor  # (D,)
    out_weight: Tensor  # (D, D)
    out_bias: Tensor  # (D,)
    out_norm: Tensor  # (D,)
    up_weight: Tensor  # (F, D)
    up_bias: Tensor  # (F,)
    down_weight: Tensor  # (D, F)
    down_bias: Tensor  # (D,)


class LayerWeights(NamedTuple):
    """Both streams of one layer."""

    x: StreamWeights
    context: Optional[StreamWeights]


class BlockWeights(NamedTuple):
    """A block's weights. condition: of each stream's modulation, weight (6 D, D) and bias (6 D,), or of each of the two
    norms without conditioning, weight and bias (D,).
    """

    layer: LayerWeights
    condition: Tuple[Tensor, ...]


class _Sources(NamedTuple):
    """Where a block's weights are, and what of it must not have changed since."""

    modules: List[Tuple[Dict[str, Any], str, nn.Module]]  # each still `name` of its parent's modules
    hooks: List[Dict[int, Any]]  # empty
    bodies: List[Dict[str, Any]]  # the modules' attributes, without a forward
    parameters: List[Tuple[Dict[str, Any], str]]


_sources: "WeakKeyDictionary[nn.Module, _Sources]" = WeakKeyDictionary()
STREAM = (
    *("{a}.{c}to_qkv.weight", "{a}.{c}to_qkv.bias", "{a}.{c}rms_norm_q.weight", "{a}.{c}rms_norm_k.weight"),
    *("{a}.{c}to_out.0.weight", "{a}.{c}to_out.0.bias", "{a}.{c}to_out.1.weight"),
    *("{m}mlp.0.weight", "{m}mlp.0.bias", "{m}mlp.2.weight", "{m}mlp.2.bias"),
)
CONDITION = ("{m}adaLN_modulation.1.weight", "{m}adaLN_modulation.1.bias")
PLAIN = (
    *(nn.Linear, nn.SiLU, nn.Dropout, nn.LayerNorm, nn.Sequential, nn.ModuleDict, RMSNorm),
    *(RotaryEmbedding, RMSNormSelfAttention, RMSNormSelfCrossAttention),
)


def block_weights(block: nn.Module) -> Optional[BlockWeights]:
    """The weights of an MMDiTBlock as it is now; None where a part of it is not what its constructor made, or is
    hooked: then only calling the parts is right.
    """
    sources = _sources.get(block)
    if sources is None or [1 for modules, name, child in sources.modules if modules.get(name) is not child]:
        sources = _sources[block] = _find(block)
    if not sources.parameters or any(sources.hooks) or [1 for body in sources.bodies if "forward" in body]:
        return None
    tensors = [parameters.get(name) for parameters, name in sources.parameters]
    if [1 for tensor in tensors if tensor is None]:
        return None
    size = len(StreamWeights._fields)
    streams = 2 if block.use_cross_attn else 1
    stream_weights = [StreamWeights(*tensors[i * size : (i + 1) * size]) for i in range(streams)]
    return BlockWeights(LayerWeights(stream_weights[0], ([*stream_weights, None])[1]), tuple(tensors[streams * size :]))


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does something beside its class's forward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__ or _has_any_global_hook()
    )


def _find(block: nn.Module) -> _Sources:
    modules = [
        (parent._modules, name, child) for parent in block.modules() for name, child in parent._modules.items() if child
    ]
    attention = "cross_attn" if block.use_cross_attn else "attn"
    streams = [{"a": attention, "c": "", "m": ""}]
    if block.use_cross_attn:
        streams.append({"a": attention, "c": "c_", "m": "context_layers."})
    names = [name.format(**stream) for stream in streams for name in STREAM]
    if block.conditioning:
        names += [name.format(**stream) for stream in streams for name in CONDITION]
    else:
        names += ["ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"]
    parameters = []
    if _is_plain(block, attention):
        for name in names:
            owner, _, leaf = name.rpartition(".")
            parameters.append((block.get_submodule(owner)._parameters, leaf))
    parts = [child for _, _, child in modules]
    hooks = [hooks for part in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)]
    return _Sources(modules, hooks, [part.__dict__ for part in parts], parameters)


def _is_plain(block: nn.Module, attention: str) -> bool:
    """Whether all parts are as the constructor makes them."""
    parts = [part for part in block.modules() if part is not block]
    norms = [part for part in parts if type(part) is RMSNorm]
    return (
        all(type(part) in PLAIN for part in parts)
        and not getattr(block, attention).linear
        and all(n.eps == RMS_EPS and n.bias is None and n.log_eps is None for n in norms)
        and all(n.eps == 1e-6 for n in parts if type(n) is nn.LayerNorm)
    )


def same_kind(x: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether all are contiguous, on x's device and of its dtype."""
    dtype, device = x.dtype, x.get_device()
    return not [1 for t in tensors if t.dtype is not dtype or t.get_device() != device or not t.is_contiguous()]
