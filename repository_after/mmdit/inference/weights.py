"""The weights of a stack, as the fused inference takes them, and of which modules it can take them.

D model dim, F feed-forward.
"""

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules.module import _has_any_global_hook

from mmdit.attention import RMS_EPS, RMSNormSelfAttention, RMSNormSelfCrossAttention
from mmdit.norm import RMSNorm
from mmdit.ops.modulation.op import modulation
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
    sizes: List[Tuple[Dict[str, Any], int]]  # each parent's modules, and how many they were
    hooks: List[Dict[int, Any]]  # empty
    bodies: List[Dict[str, Any]]  # the modules' attributes, without a forward
    norms: List[Tuple[nn.Module, float]]  # with the eps that the kernels take
    dropouts: List[nn.Dropout]
    parameters: List[Tuple[Dict[str, Any], str]]


_sources: "WeakKeyDictionary[nn.Module, _Sources]" = WeakKeyDictionary()
STREAM = (
    *("{a}.{c}to_qkv.weight", "{a}.{c}to_qkv.bias", "{a}.{c}rms_norm_q.weight", "{a}.{c}rms_norm_k.weight"),
    *("{a}.{c}to_out.0.weight", "{a}.{c}to_out.0.bias", "{a}.{c}to_out.1.weight"),
    *("{m}mlp.0.weight", "{m}mlp.0.bias", "{m}mlp.2.weight", "{m}mlp.2.bias"),
)
NORM_EPS = 1e-6  # of the layers' LayerNorm
EPS = {RMSNorm: RMS_EPS, nn.LayerNorm: NORM_EPS}
CONDITION = ("{m}adaLN_modulation.1.weight", "{m}adaLN_modulation.1.bias")
MLP = (nn.Linear, nn.SiLU, nn.Linear, nn.Dropout)
PLAIN_TENSORS = (Tensor, nn.Parameter)
TRACED_TENSORS = (*PLAIN_TENSORS, FakeTensor, FunctionalTensor)


def block_weights(block: nn.Module) -> Optional[BlockWeights]:
    """The weights of an MMDiTBlock as it is now; None where a part of it is not what its constructor made, or is
    hooked: then only calling the parts is right.
    """
    sources = _sources.get(block)
    if (
        sources is None
        or [1 for modules, name, child in sources.modules if modules.get(name) is not child]
        or [1 for modules, size in sources.sizes if len(modules) != size]
    ):
        sources = _sources[block] = _find(block)
    return _taken(block, sources)


def _taken(block: nn.Module, sources: _Sources) -> Optional[BlockWeights]:
    if not sources.parameters or any(sources.hooks) or [1 for body in sources.bodies if "forward" in body]:
        return None
    if [1 for norm, eps in sources.norms if norm.eps != eps] or attention_of(block).linear:
        return None
    tensors = [parameters.get(name) for parameters, name in sources.parameters]
    if [1 for tensor in tensors if tensor is None]:
        return None
    size = len(StreamWeights._fields)
    streams = 2 if block.use_cross_attn else 1
    stream_weights = [StreamWeights(*tensors[i * size : (i + 1) * size]) for i in range(streams)]
    context = stream_weights[1] if streams == 2 else None
    return BlockWeights(LayerWeights(stream_weights[0], context), tuple(tensors[streams * size :]))


def traced_weights(block: nn.Module) -> Optional[Tuple[BlockWeights, Set[float]]]:
    """block_weights, found anew, and drop_rates: for what is traced."""
    sources = _find(block)
    weights = _taken(block, sources)
    return None if weights is None else (weights, _rates(sources))


def tensors_of(weights: Sequence[BlockWeights]) -> List[Tensor]:
    """The blocks' weights, one after the other."""
    return [t for w in weights for part in (*w.layer, w.condition) if part is not None for t in part]


def layers_of(flat: Sequence[Tensor], streams: int, conditioned: bool) -> int:
    """How many blocks tensors_of was given."""
    return len(flat) // (streams * len(StreamWeights._fields) + (2 * streams if conditioned else 4))


def blocks_of(flat: Sequence[Tensor], streams: int, layers: int) -> List[BlockWeights]:
    """What tensors_of was given."""
    size, own, found = len(flat) // layers, len(StreamWeights._fields), []
    for i in range(0, len(flat), size):
        parts = [StreamWeights(*flat[i + s * own :][:own]) for s in range(streams)]
        layer = LayerWeights(parts[0], parts[1] if streams == 2 else None)
        found.append(BlockWeights(layer, tuple(flat[i + streams * own : i + size])))
    return found


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does something beside its class's forward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__ or _has_any_global_hook()
    )


def drop_rates(block: nn.Module) -> Set[float]:
    """With which probabilities the dropouts of a block that block_weights has taken now drop."""
    return _rates(_sources[block])


def _rates(sources: _Sources) -> Set[float]:
    return {dropout.p if dropout.training else 0.0 for dropout in sources.dropouts}


def attention_of(block: nn.Module) -> nn.Module:
    """An MMDiTBlock's attention, under either of its names."""
    return block.cross_attn if block.use_cross_attn else block.attn


def kind_of(block: nn.Module) -> Tuple[bool, bool, int]:
    """What MMDiTBlocks that are run together must have alike, beside the sizes of their weights."""
    return block.conditioning, block.use_cross_attn, attention_of(block).num_head


def _find(block: nn.Module) -> _Sources:
    modules = [
        (parent._modules, name, child)
        for parent in block.modules()
        for name, child in parent._modules.items()
        if child is not None
    ]
    sizes = [(parent._modules, len(parent._modules)) for parent in block.modules()]
    if not _is_plain(block):
        return _Sources(modules, sizes, [], [], [], [], [])
    attention = "cross_attn" if block.use_cross_attn else "attn"
    streams = [{"a": attention, "c": "", "m": ""}]
    if block.use_cross_attn:
        streams.append({"a": attention, "c": "c_", "m": "context_layers."})
    names = [name.format(**stream) for stream in streams for name in STREAM]
    if block.conditioning:
        names += [name.format(**stream) for stream in streams for name in CONDITION]
    else:
        names += ["ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"]
    split = [name.rpartition(".") for name in names]
    parts = [child for _, _, child in modules]
    return _Sources(
        modules,
        sizes,
        hooks=[hooks for part in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)],
        bodies=[part.__dict__ for part in parts],
        norms=[(part, EPS[type(part)]) for part in parts if type(part) in EPS],
        dropouts=[part for part in parts if type(part) is nn.Dropout],
        parameters=[(block.get_submodule(owner)._parameters, leaf) for owner, _, leaf in split],
    )


def _is_plain(block: nn.Module) -> bool:
    """Whether all parts are as the constructor makes them."""
    attention = attention_of(block)
    cross = block.use_cross_attn
    sequences = [(block.mlp, MLP), (attention.to_out, (nn.Linear, RMSNorm))]
    single = [(attention.to_qkv, nn.Linear), (attention.rotary, RotaryEmbedding)]
    normed = [attention.rms_norm_q, attention.rms_norm_k]
    if cross:
        sequences += [(block.context_layers["mlp"], MLP), (attention.c_to_out, (nn.Linear, RMSNorm))]
        single.append((attention.c_to_qkv, nn.Linear))
        normed += [attention.c_rms_norm_q, attention.c_rms_norm_k]
    if block.conditioning:
        owners = [block, block.context_layers] if cross else [block]
        sequences += [(owner.get_submodule("adaLN_modulation"), (nn.SiLU, nn.Linear)) for owner in owners]
    else:
        single += [(block.ln_1, nn.LayerNorm), (block.ln_2, nn.LayerNorm)]
    single += [(norm, RMSNorm) for norm in normed]
    norms = [*normed, *[part for sequence, _ in sequences for part in sequence if type(part) is RMSNorm]]
    return (
        type(attention) is (RMSNormSelfCrossAttention if cross else RMSNormSelfAttention)
        and all(type(part) is expected for part, expected in single)
        and all(
            type(sequence) is nn.Sequential and tuple(type(part) for part in sequence) == expected
            for sequence, expected in sequences
        )
        and all(norm.bias is None and norm.log_eps is None for norm in norms)
    )


def shapes(weights: BlockWeights) -> List[Tuple[int, ...]]:
    """The shapes of a block's weights, in their order, as D and F of the x stream have them."""
    forward, dim = weights.layer.x.up_weight.shape
    stream = [(3 * dim, dim), (3 * dim,), (dim,), (dim,), (dim, dim), (dim,), (dim,)]
    stream += [(forward, dim), (forward,), (dim, forward), (dim,)]
    streams = 1 if weights.layer.context is None else 2
    conditioned = weights.condition[0].ndim == 2
    return stream * streams + ([(6 * dim, dim), (6 * dim,)] * streams if conditioned else [(dim,)] * 4)


def same_kind(x: Tensor, weights: Sequence[BlockWeights], classes: Tuple[type, ...] = PLAIN_TENSORS) -> bool:
    """Whether all weights are of the classes, on x's device, of its dtype, contiguous, and of all blocks' one size."""
    dtype, device, expected = x.dtype, x.get_device(), shapes(weights[0])
    if expected[4][0] != x.shape[2]:
        return False
    for block in weights:
        tensors = tensors_of([block])
        if len(tensors) != len(expected) or [
            1
            for t, shape in zip(tensors, expected, strict=True)
            if type(t) not in classes
            or t.dtype is not dtype
            or t.get_device() != device
            or t.shape != shape
            or not t.is_contiguous()
        ]:
            return False
    return True


def stack_modulation(
    conditioned: bool,
    weights: Sequence[BlockWeights],
    streams: int,
    y: Optional[Tensor],
    modulate: Callable[..., Tensor] = modulation,
) -> Tensor:
    """Scale, shift and gate of attention and MLP: (B or 1, layers, streams, 6, D) fp32 or wider; with gradients if
    modulate, ops/modulation's or its reference, gives them.
    """
    if conditioned:
        matrices = [m for w in weights for m in w.condition[: 2 * streams : 2]]
        biases = [b for w in weights for b in w.condition[1 : 2 * streams : 2]]
        chunks = modulate(y.view(y.shape[0], -1), matrices, biases)
        return chunks.unflatten(2, (6, -1)).unflatten(1, (len(weights), streams))
    affine = torch.stack([t for w in weights for t in w.condition])
    wide = affine.to(torch.promote_types(affine.dtype, torch.float32)).unflatten(0, (-1, 2, 2))  # layer, norm, pair
    scale, shift = wide[:, :, 0] - 1.0, wide[:, :, 1]
    return torch.stack((scale, shift, torch.ones_like(scale)), dim=2).flatten(1, 2)[None, :, None].contiguous()
