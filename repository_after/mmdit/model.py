"""The stack of MMDiT blocks."""

from dataclasses import asdict
from typing import Optional, Union

import torch
from torch import Tensor, nn

from mmdit.attention import AttentionOutput
from mmdit.block import MMDiTBlock
from mmdit.config import MMDiTConfig
from mmdit.inference.stack import layers_problem, run_fused
from mmdit.runtime.cuda_graph import GraphedForward
from mmdit.training.passes import RECOMPUTE
from mmdit.validation import check_choice, check_positive_int


class MMDiT(nn.Module):
    """config.num_layers blocks, each fed what the last one gave.

    Args:
        config: sizes and switches of the blocks, see MMDiTConfig.

    recompute: what a fused backward computes again instead of keeping it from the forward, to be set at any time:
        "none", the least time; "selective", queries, keys and values; "full", all but each layer's input.

    Raises ConfigError where these do not fit; forward raises the package's errors for inputs that do not.
    """

    recompute = "none"

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        block = asdict(config)
        num_layers = block.pop("num_layers")
        check_positive_int("num_layers", num_layers)
        self.layers = nn.ModuleList(MMDiTBlock(**block) for _ in range(num_layers))

    def forward(
        self,
        x: Tensor,
        y: Optional[Tensor] = None,
        context: Optional[Tensor] = None,
        attn_mask: Optional[Tensor] = None,
        start_pos: Optional[Union[int, Tensor]] = None,
    ) -> AttentionOutput:
        """x (B, L, D), condition y (B, D) or (B, 1, D), context (B, C, D); attn_mask (B, L, L) over x, nonzero =
        attend; start_pos None, an int or (B,): the position of x[:, 0].
        """
        if not torch.jit.is_scripting():
            check_choice("recompute", self.recompute, RECOMPUTE)
            problem = layers_problem(self.layers, MMDiTBlock)
            if problem is None:
                self.layers[0].check_inputs(x, y, attn_mask, context, start_pos)
            outputs = run_fused(list(self.layers), x, y, context, attn_mask, start_pos, problem, self.recompute)
            if outputs is not None:
                return AttentionOutput(*outputs)
        for layer in self.layers:
            out = layer(x, y, attn_mask, context, start_pos)
            x, context = out.x_out, out.context_out
        return AttentionOutput(x, context)

    @torch.jit.unused
    def compile_graph(
        self,
        x: Tensor,
        y: Optional[Tensor] = None,
        context: Optional[Tensor] = None,
        attn_mask: Optional[Tensor] = None,
        start_pos: Optional[Union[int, Tensor]] = None,
    ) -> GraphedForward:
        """Capture the forward, without gradients, for inputs like these in a CUDA graph, which is then called with as
        many: see GraphedForward.
        """
        return GraphedForward(self, x, y, context, attn_mask, start_pos)
