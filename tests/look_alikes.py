"""An SD3-like joint block of a user's own: other names, another chunk order, separate projections, real rotations,
a softmax by hand, modulation spelled otherwise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, t: Tensor) -> Tensor:
        return self.gamma * (t / torch.sqrt(t.pow(2).mean(dim=-1, keepdim=True) + 1e-5))


class Stream(nn.Module):
    """One stream's weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.query_norm, self.key_norm = Norm(width), Norm(width)
        self.condition = nn.Linear(width, 6 * width)
        self.project, self.project_norm = nn.Linear(width, width), Norm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)


def angles(length: int, pairs: int) -> tuple[Tensor, Tensor]:
    turns = torch.outer(torch.arange(length).float(), 10.0 ** -torch.arange(pairs).float())
    return turns.cos(), turns.sin()


class JointBlock(nn.Module):
    """image (B, L, D) and text (B, C, D) under a condition (B, D), each sample's image from position starts (B,).

    without: leave a part out, as no pattern has it.
    """

    def __init__(self, width: int, heads: int, length: int, without: str = "") -> None:
        super().__init__()
        self.heads, self.without = heads, without
        self.image, self.text = Stream(width), Stream(width)
        cos, sin = angles(4 * length, width // heads // 2)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def split(self, t: Tensor) -> Tensor:
        return t.view(t.shape[0], t.shape[1], self.heads, -1).permute(0, 2, 1, 3)

    def rotate(self, t: Tensor, starts: Tensor | None) -> Tensor:
        rows = torch.arange(t.shape[2])
        cos, sin = (table[rows if starts is None else starts[:, None, None] + rows] for table in (self.cos, self.sin))
        pairs = t.reshape(*t.shape[:-1], -1, 2)
        even, odd = pairs[..., 0], pairs[..., 1]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(t.shape)

    def modulated(self, t: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        h = F.layer_norm(t, t.shape[-1:], eps=1e-6)
        return shift + h * (scale + 1) if self.without != "one-plus" else shift + h * scale

    def forward(
        self, image: Tensor, text: Tensor, condition: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        chunks = [s.condition(F.silu(condition)).unsqueeze(1).chunk(6, dim=2) for s in (self.image, self.text)]
        heads = []
        for stream, t, (shift, scale, *_) in zip((self.image, self.text), (image, text), chunks, strict=True):
            h = self.modulated(t, shift, scale)
            q, k = stream.query_norm(stream.query(h)), stream.key_norm(stream.key(h))
            heads.append([self.split(q), self.split(k), self.split(stream.value(h))])
        heads[0][:2] = [self.rotate(t, starts) for t in heads[0][:2]]
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(*heads, strict=True))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(q.shape[0], -1, image.shape[-1])
        outputs = []
        rows = (mixed[:, : image.shape[1]], mixed[:, image.shape[1] :])
        for stream, t, h, chunk in zip((self.image, self.text), (image, text), rows, chunks, strict=True):
            _, _, gate, shift, scale, gate_up = chunk
            t = t + stream.project_norm(stream.project(h)) * gate
            h = self.modulated(t, shift, scale)
            activation = F.gelu if self.without == "silu" else F.silu
            outputs.append(stream.down(activation(stream.up(h))) * gate_up + t)
        return outputs[0], outputs[1]
