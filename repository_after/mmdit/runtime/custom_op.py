"""Registration of an op with torch.library: schema, one implementation for all devices, fake, autograd."""

from typing import Any, Callable, Optional

import torch

_library = torch.library.Library("mmdit", "DEF")


def register_op(
    schema: str,
    *,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Optional[Callable[..., None]] = None,
    backward: Optional[Callable[..., Any]] = None,
) -> None:
    """Register the op mmdit::NAME.

    Args:
        schema: "NAME(Tensor x, ...) -> Tensor".
        implementation: runs the op on real tensors of any device.
        fake: gives empty outputs of the right shape, dtype, device and strides.
        setup_context, backward: as in torch.library.register_autograd; none for an op that is itself a backward.

    Plain define and impl: torch.library.custom_op costs 3 us more a call.
    """
    name = _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    qualified = f"mmdit::{name}"
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
