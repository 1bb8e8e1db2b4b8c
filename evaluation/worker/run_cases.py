"""Runs numeric cases on one tree: `run_cases.py TREE CASES RESULTS`, folders that hold CASES/plan.json and get RESULTS.

Each case of the plan is a file of weights, inputs and cotangents. Its result is a file of raw outputs and gradients,
and a JSON of what a tensor file does not tell. Nothing here knows what is right, or how it is judged. Functions of
other modules are taken before the tree is imported, so that one that is replaced later is not the one that is called.
"""

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from hashlib import sha256
from json import dumps
from os import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def main() -> None:
    tree, cases, results = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    plan = json.loads((cases / "plan.json").read_text(encoding="utf-8"))
    sys.path.insert(0, str(tree))
    import mmdit

    for entry in plan["cases"]:
        tensors = load_file(cases / f"{entry['id']}.safetensors", device=plan["device"])
        outputs: dict[str, Tensor] = {}
        try:
            told = Runner(mmdit, entry, tensors, outputs).run()
        except Exception as error:
            told = {"error": describe(error, str(tree))}
        _write(results, entry["id"], outputs, told)


def _write(results: Path, name: str, outputs: dict[str, Tensor], told: dict[str, Any]) -> None:
    """The JSON last and renamed into place: where it is, the case is whole."""
    plain = {key: t.detach().cpu().contiguous().clone() for key, t in outputs.items()}
    save_file(plain, results / f"{name}.safetensors")
    partial = results / f"{name}.partial"
    partial.write_text(dumps(told), encoding="utf-8")
    replace(partial, results / f"{name}.json")


def make_module(mmdit: ModuleType, entry: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """The module of a plan's entry, with these weights, where they are."""
    how = entry["make"]
    if "configuration" in how:
        module = getattr(mmdit, how["name"])(mmdit.MMDiTConfig(**how["configuration"]))
    else:
        module = getattr(mmdit, how["name"])(**how["arguments"])
    module = module.to(device=next(iter(weights.values())).device, dtype=getattr(torch, entry["dtype"])).eval()
    module.load_state_dict(weights, strict=True)
    return module


class Runner:
    """One case: a module, and calls with their values copied into the same memory wherever the shapes allow."""

    def __init__(
        self, mmdit: ModuleType, entry: dict[str, Any], tensors: dict[str, Tensor], outputs: dict[str, Tensor]
    ):
        self.entry, self.tensors, self.outputs = entry, tensors, outputs
        self.buffers: dict[tuple[str, torch.Size], Tensor] = {}
        self.facts: dict[str, Any] = {}
        self.module = None if "function" in entry["make"] else make_module(mmdit, entry, self.below("w0."))
        self.call = getattr(mmdit, entry["make"]["function"]) if self.module is None else self.module

    def below(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}

    def run(self) -> dict[str, Any]:
        kept = []
        for number, call in enumerate(self.entry["calls"]):
            if self.module is not None and number and call["weights"] != self.entry["calls"][number - 1]["weights"]:
                with torch.no_grad():
                    for name, parameter in self.module.named_parameters():
                        parameter.copy_(self.tensors[f"w{call['weights']}.{name}"])
            kept.append(self.one(number, call))
        for number, found in enumerate(kept):  # only now, so that an output that a later call overwrote shows
            self.outputs.update({f"{number}.{name}": t for name, t in found.items()})
        hashes = {name: digest(t) for name, t in (self.module.state_dict() if self.module is not None else {}).items()}
        return {"facts": self.facts, "weights": hashes}

    def one(self, number: int, call: dict[str, Any]) -> dict[str, Tensor]:
        inputs = {name: self.place(f"{name}", t) for name, t in self.below(f"c{number}.").items()}
        recorded = self.entry["mode"] != "inference"
        leaves = {name: t.detach().requires_grad_() for name, t in inputs.items() if recorded and t.is_floating_point()}
        leaves = {name: t for name, t in leaves.items() if name != "attn_mask"}
        arguments = {**inputs, **leaves} | ({"start_pos": call["start_pos"]} if call["start_pos"] is not None else {})
        with self.mode():
            result = self.call(**arguments)
            named = self.named(result)
            found = dict(named)
            if recorded:
                found |= self.gradients(number, named, leaves)
        self.facts[str(number)] = {
            "result": type(result).__name__,
            "fields": list(getattr(result, "_fields", ())),
            "outputs": {name: facts(t) for name, t in named.items()},
            "inputs": {name: digest(t) for name, t in inputs.items()},
        }
        return found

    def place(self, name: str, values: Tensor) -> Tensor:
        buffer = self.buffers.setdefault((name, values.shape), torch.empty_like(values))
        with torch.no_grad():
            buffer.copy_(values)
        return buffer

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.entry["mode"] == "inference":
                stack.enter_context(torch.inference_mode())
            if self.entry["mode"] == "autocast":
                stack.enter_context(torch.autocast(next(iter(self.tensors.values())).device.type, torch.bfloat16))
            yield

    def named(self, result: Any) -> dict[str, Tensor]:
        if self.module is None:
            return {"x_out": result}
        context_out = {} if result.context_out is None else {"context_out": result.context_out}
        return {"x_out": result.x_out} | context_out

    def gradients(self, number: int, named: dict[str, Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        parameters = {} if self.module is None else {f"w.{name}": p for name, p in self.module.named_parameters()}
        asked = leaves | parameters
        cotangents = [self.tensors[f"g{number}.{name}"].to(out.dtype) for name, out in named.items()]
        found = torch.autograd.grad(
            list(named.values()), list(asked.values()), cotangents, allow_unused=True, materialize_grads=True
        )
        return {f"d.{name}": gradient for name, gradient in zip(asked, found, strict=True)}


def facts(t: Tensor) -> dict[str, Any]:
    kind = f"{type(t).__module__}.{type(t).__qualname__}"
    return {"type": kind, "device": t.device.type, "contiguous": t.is_contiguous(), "digest": digest(t)}


def digest(t: Tensor) -> str:
    return sha256(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def describe(error: Exception, tree: str) -> str:
    """The error in one line, with the last place inside the tree that it passed through."""
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    inside = [place.removeprefix(f"{tree}/") for place in places if place.startswith(f"{tree}/")]
    where = f" ({inside[-1]})" if inside else ""
    return f"{type(error).__name__}: {error}{where}"


if __name__ == "__main__":
    main()
