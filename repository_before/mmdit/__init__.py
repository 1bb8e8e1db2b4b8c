"""MMDiT attention stack in plain PyTorch: the semantic reference."""

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
from mmdit.norm import RMSNorm, layernorm_adaln, rmsnorm_adaln

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
    "ShapeError",
    "UnexpectedInputError",
    "layernorm_adaln",
    "rmsnorm_adaln",
]
