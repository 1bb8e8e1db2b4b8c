"""Registration of an op with torch.library, and a shorter way to it for plain eager calls."""

from typing import Any, Callable, Dict, Optional

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl

from mmdit.runtime.dispatch import why_not
from mmdit.runtime.reference_gradients import reference_gradients

_library = torch.library.Library("mmdit", "DEF")
_PLAIN = (Tensor, torch.nn.Parameter)
DECOMPOSITIONS: Dict[Any, Callable[..., Any]] = {}  # of each op, by PyTorch's, as run_decompositions takes them


def register_op(
    schema: str,
    *,
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    unsupported: Callable[[Tensor], Optional[str]],
    setup_context: Optional[Callable[..., None]] = None,
    backward: Optional[Callable[..., Any]] = None,
    by_reference: bool = False,
    recorded: Optional[Callable[..., Any]] = None,
) -> Callable[..., Any]:
    """Register the op mmdit::NAME, and return the function to call it by where its kernel can run.

    Args:
        schema: "NAME(Tensor x, ...) -> Tensor"; x decides whether the kernel can run.
        kernel, reference: the op on real tensors, by Triton and by PyTorch.
        fake: gives empty outputs of the right shape, dtype, device and strides.
        unsupported: the op's own reason against its kernel for x, or None.
        setup_context, backward: as in torch.library.register_autograd; none for an op that is itself a backward.
        by_reference: without those, in a graph, the reference is computed again in backward, for its gradients.
        recorded: where gradients may be, called first, with the op's arguments: what it gives counts, None does not.

    A plain eager call goes to the kernel straight, under a torch.autograd.Function where gradients are recorded:
    through the dispatcher it takes 36 us more (H200 host). Under torch.compile, torch.export, and dispatch modes or
    tensor subclasses (fake tensors, selective checkpointing), which must see the op, it is called as registered.
    """

    def implementation(x: Tensor, *rest: Any) -> Any:
        run = reference if unsupported(x) or why_not(x) else kernel
        return run(x, *rest)

    name = _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    qualified = f"mmdit::{name}"
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    op = getattr(torch.ops.mmdit, name).default
    DECOMPOSITIONS[op] = reference
    function = None
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
        function = _autograd_function(name, kernel, setup_context, backward)
    if by_reference:  # here: registered after a first call, it would be missed under AOTAutograd
        setup_context, backward = reference_gradients(reference)
        by_arithmetic = make_autograd_impl(op, Info(backward, setup_context))  # what register_autograd would register

        def with_gradients(keys: Any, *arguments: Any) -> Any:
            found = None if recorded is None else recorded(*arguments)
            return by_arithmetic(keys, *arguments) if found is None else found

        _library.impl(name, with_gradients, "Autograd", with_keyset=True)

    def call(x: Tensor, *rest: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or type(x) not in _PLAIN:
            return op(x, *rest)
        if function is None or not torch.is_grad_enabled():
            return kernel(x, *rest)
        return function.apply(x, *rest)

    return call


def _autograd_function(
    name: str, kernel: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Any:
    """The kernel with its backward as a torch.autograd.Function, context and all in forward: with a separate
    setup_context, apply binds the signature anew on each call, which takes 24 us (H200 host).
    """

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = kernel(*arguments)
        setup_context(ctx, arguments, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), methods)
