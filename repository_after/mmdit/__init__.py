"""MMDiT attention stack with fused Triton kernels, and PyTorch arithmetic wherever those cannot run."""

from mmdit.attention import AttentionOutput, RMSNormSelfAttention, RMSNormSelfCrossAttention
from mmdit.block import GPT2Block, MMDiTBlock
from mmdit.config import MMDiTConfig
from mmdit.errors import (
    ConfigError,
    DeviceError,
    DTypeError,
    MissingInputError,
    MMDiTError,
    PositionError,
    ShapeError,
    UnexpectedInputError,
)
from mmdit.model import MMDiT
from mmdit.norm import RMSNorm, RMSNormWithResidual
from mmdit.ops.norm_adaln.op import layernorm_adaln, rmsnorm_adaln
from mmdit.runtime.dispatch import explain
from mmdit.runtime.layout import count_layouts

__all__ = [
    "AttentionOutput",
    "ConfigError",
    "DTypeError",
    "DeviceError",
    "GPT2Block",
    "MMDiT",
    "MMDiTBlock",
    "MMDiTConfig",
    "MMDiTError",
    "MissingInputError",
    "PositionError",
    "RMSNorm",
    "RMSNormSelfAttention",
    "RMSNormSelfCrossAttention",
    "RMSNormWithResidual",
    "ShapeError",
    "UnexpectedInputError",
    "count_layouts",
    "explain",
    "layernorm_adaln",
    "rmsnorm_adaln",
]
