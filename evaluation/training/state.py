"""All that a run needs to go on where it stopped, as one checkpoint."""

import torch
from torch import Generator, Tensor, nn

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class State:
    """The network, the fp32 or wider weights that the optimizer has ("masters"; in 16 bits the network's follow them),
    their moving average, the optimizer's moments, and the random generators.
    """

    def __init__(self, network: nn.Module, learning_rate: float, ema: float, seed: int) -> None:
        self.network, self.ema = network, ema
        self.names, self.weights = map(list, zip(*network.named_parameters(), strict=True))
        self.device = self.weights[0].device
        self.follows = self.weights[0].dtype == torch.bfloat16
        self.masters = [w.detach().float().requires_grad_() for w in self.weights] if self.follows else self.weights
        self.averages = [m.detach().clone() for m in self.masters]
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.masters, learning_rate, fused=fused)
        for master in self.masters:  # also of those that get no gradient, so that every checkpoint has the same names
            step = torch.zeros((), device=self.device if fused else "cpu")
            zeros = step, *(torch.zeros_like(master, requires_grad=False) for _ in range(2))
            self.optimizer.state[master] = dict(zip(MOMENTS, zeros, strict=True))
        self.generator = Generator().manual_seed(seed)

    def tensors(self) -> dict[str, Tensor]:
        """By name; the network's and the optimizer's are the very ones in use."""
        found = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        for name, master, average in zip(self.names, self.masters, self.averages, strict=True):
            found |= {f"master.{name}": master.detach()} if self.follows else {}
            found |= {f"average.{name}": average}
            found |= {f"optimizer.{moment}.{name}": self.optimizer.state[master][moment] for moment in MOMENTS}
        found |= {"random.data": self.generator.get_state(), "random.torch": torch.get_rng_state()}
        return found | ({"random.cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave once."""
        with torch.no_grad():
            for name, own in self.tensors().items():
                if not name.startswith("random."):
                    own.copy_(tensors[name])
        self.generator.set_state(tensors["random.data"])
        torch.set_rng_state(tensors["random.torch"])
        if "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)

    def collect(self) -> None:
        """Add the gradients of 16-bit weights to their masters'."""
        if self.follows:
            for master, weight in zip(self.masters, self.weights, strict=True):
                if weight.grad is not None:
                    master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
                    weight.grad = None

    @torch.no_grad()
    def update(self, step: int, learning_rate: float) -> None:
        """One step of the optimizer, the average and the network's weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_lerp_(self.averages, self.masters, 1 - min(self.ema, (1 + step) / (10 + step)))
        if self.follows:
            torch._foreach_copy_(self.weights, self.masters)

    @torch.no_grad()
    def take_averages(self) -> None:
        """Give the network the averages for weights; the run is over."""
        torch._foreach_copy_(self.weights, self.averages)
