"""Module swap: modules that compute what this package's do, by structure, are replaced by this package's."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from mmdit.attention import RMSNormSelfAttention, RMSNormSelfCrossAttention
from mmdit.block import MMDiTBlock
from mmdit.config import MMDiTConfig
from mmdit.errors import ConfigError
from mmdit.model import MMDiT
from mmdit.norm import RMSNorm

RECORD = "_mmdit_unfused"  # of a fused model: where what was put, and what was there
PROBE_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Swap:
    """One module of a model: its path ("" is the model itself), its class, and why it was left, or None."""

    path: str
    kind: str
    refused: str | None


def fuse(model: nn.Module) -> nn.Module:
    """A model whose MMDiT modules are this package's, with the very weights; the given one is left as it was.

    Taken are modules named as this package's classes are, from whatever package, whose parameters, sizes, eps and
    forward signature are those of ours: stacks first, then blocks, attentions and norms. fusions(model) tells what
    was taken and what was not, and why; unfuse gives the given model back. Hooks, modes and frozen weights stay.
    """
    made = _shell(model)
    fused = _fused(model) if _refusal(model) is None else None
    if fused is not None:
        made = fused
    else:
        _swap_children(made)
    made.__dict__[RECORD] = (model,)
    return made


def unfuse(model: nn.Module) -> nn.Module:
    """The model that fuse was given. Weights trained since are in it, as they are the same.

    Raises ConfigError for a model that fuse did not give.
    """
    if RECORD not in model.__dict__:
        raise ConfigError("model", "what fuse returned", type(model).__name__)
    return model.__dict__[RECORD][0].train(model.training)


def fusions(model: nn.Module) -> list[Swap]:
    """What fuse(model) would take, and what looks like it and is left, with the difference."""
    return list(_found("", model))


def _found(path: str, module: nn.Module) -> Iterator[Swap]:
    kind = _kind(module)
    if kind is not None and type(module) is not kind:
        refused = _refusal(module)
        yield Swap(path, kind.__name__, refused)
        if refused is None:
            return
    for name, child in module.named_children():
        yield from _found(f"{path}.{name}" if path else name, child)


def _shell(module: nn.Module) -> nn.Module:
    """The module with attributes of its own, and the same children, parameters and buffers."""
    made = copy.copy(module)
    for name in ("_modules", "_parameters", "_buffers"):
        made.__dict__[name] = dict(module.__dict__[name])
    return made


def _swap_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        fused = _fused(child) if _refusal(child) is None else None
        if fused is None:
            fused = _shell(child)
            _swap_children(fused)
        module._modules[name] = fused


def _kind(module: nn.Module) -> type[nn.Module] | None:
    """This package's class of the module's name."""
    ours = {kind.__name__: kind for kind in BUILD}
    return next((ours[k.__name__] for k in type(module).__mro__ if k.__name__ in ours), None)


def _refusal(module: nn.Module) -> str | None:
    """Why the module is not what ours of the name is, or None."""
    kind = _kind(module)
    if kind is None:
        return "no class of this package has its name"
    if type(module) is kind:
        return "it is this package's already"
    if type(module).__name__ != kind.__name__:
        return f"a subclass of {kind.__name__}, which may compute something else"
    try:
        ours = BUILD[kind](module)
    except Exception as error:
        return f"{kind.__name__} cannot be built as it is: {type(error).__name__}: {error}"
    for path, part in module.named_modules():
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or "forward" in part.__dict__:
            return f"{path or 'it'} is hooked"
    mine, theirs = _shapes(ours), _shapes(module)
    if mine != theirs:
        different = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        return f"other parameters than {kind.__name__}'s: {', '.join(different[:4])}"
    return _unlike(ours, module) or _other_signature(ours, module) or _other_numbers(module)


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(p.shape) for name, p in module.state_dict().items()}


def _unlike(ours: nn.Module, theirs: nn.Module) -> str | None:
    """The first part whose type or numbers (eps, heads, ...) differ, or None."""
    parts = dict(theirs.named_modules())
    for path, mine in ours.named_modules():
        part = parts.get(path)
        if part is None or type(part).__name__ != type(mine).__name__:
            got = "nothing" if part is None else type(part).__name__
            return f"{path}: expected {type(mine).__name__}, got {got}"
        for name in ("eps", "num_head", "linear", "max_seq_len", "use_context", "conditioning", "approximate"):
            if getattr(mine, name, None) != getattr(part, name, None):
                return f"{path}.{name}: expected {getattr(mine, name, None)}, got {getattr(part, name, None)}"
    extra = sorted(parts.keys() - dict(ours.named_modules()).keys())
    return f"a part of its own: {extra[0]}" if extra else None


def _other_signature(ours: nn.Module, theirs: nn.Module) -> str | None:
    expected, got = list(signature(ours.forward).parameters), list(signature(theirs.forward).parameters)
    return None if expected == got else f"forward takes {got}, expected {expected}"


def _other_numbers(module: nn.Module) -> str | None:
    """What tells the two apart where both are given the same random weights and inputs, or None. A class of the same
    name and parameters may still add 1 to its weight, or leave a norm out.
    """
    ours = _fused(module)
    rng, weight = torch.Generator().manual_seed(0), next(module.parameters())
    state = {name: torch.randn(p.shape, generator=rng) / p.shape[-1] ** 0.5 for name, p in module.named_parameters()}
    state = {name: t.to(weight.device, weight.dtype) for name, t in state.items()}
    dim = module.weight.shape[0] if isinstance(ours, RMSNorm) else next(_norms(ours)).weight.shape[0]
    x, y, context = (torch.randn(s, generator=rng).to(weight) for s in ((2, 5, dim), (2, dim), (2, 3, dim)))
    given = {"x": x, "y": y, "context": context, "attn_mask": torch.ones(2, 5, 5, device=x.device).tril()}
    takes = {"x", "attn_mask"} & set(signature(ours.forward).parameters)
    takes |= {"y"} if getattr(ours, "conditioning", _config(ours, "conditioning")) else set()
    crosses = getattr(ours, "use_cross_attn", getattr(ours, "use_context", _config(ours, "use_cross_attn")))
    takes |= {"context"} if crosses else set()
    kwargs = {name: given[name] for name in takes}
    with _evaluating(module), _evaluating(ours), torch.no_grad():
        want = tree_leaves(functional_call(module, state, kwargs=kwargs, args=()))
        got = tree_leaves(functional_call(ours, state, kwargs=kwargs, args=()))
    error = max(((g - w).norm() / w.norm()).item() for g, w in zip(got, want, strict=True) if w is not None)
    return None if error <= PROBE_TOLERANCE[weight.dtype] else f"other numbers: relative error {error:.1e}"


def _norms(module: nn.Module) -> Iterator[RMSNorm]:
    return (part for part in module.modules() if isinstance(part, RMSNorm))


def _config(module: nn.Module, name: str) -> bool:
    return getattr(getattr(module, "config", None), name, False)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _fused(module: nn.Module) -> nn.Module:
    """Ours, with the module's own parameters, mode, frozen state and rates of dropout."""
    ours = BUILD[_kind(module)](module)
    weight = next(module.parameters())
    ours.to(weight.device, weight.dtype)
    theirs = dict(module.named_modules())
    for path, part in ours.named_modules():
        part.training = theirs[path].training
        if isinstance(part, nn.Dropout):
            part.p = theirs[path].p
        for name in part._parameters:
            part._parameters[name] = theirs[path]._parameters.get(name)
    return ours


def _attention_options(module: nn.Module) -> dict[str, Any]:
    return {name: getattr(module, name) for name in ("dim", "num_head", "max_seq_len", "linear")}


def _block(module: nn.Module) -> MMDiTBlock:
    attention = module.cross_attn if hasattr(module, "cross_attn") else module.attn
    return MMDiTBlock(
        module.dim_base,
        attention.num_head,
        dim_feedforward=module.mlp[0].out_features,
        dropout=module.mlp[3].p,
        conditioning=module.conditioning,
        use_cross_attn=module.use_cross_attn,
    )


def _stack(module: nn.Module) -> MMDiT:
    names = MMDiTConfig.__dataclass_fields__
    return MMDiT(MMDiTConfig(**{name: getattr(module.config, name) for name in names}))


BUILD = {
    MMDiT: _stack,
    MMDiTBlock: _block,
    RMSNormSelfCrossAttention: lambda m: RMSNormSelfCrossAttention(**_attention_options(m), use_context=m.use_context),
    RMSNormSelfAttention: lambda m: RMSNormSelfAttention(**_attention_options(m)),
    RMSNorm: lambda m: RMSNorm(m.weight.shape[0], m.eps),
}
