"""One run: a tree's model, trained in this process."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter

import torch
from torch import Generator, Tensor, nn

from evaluation.store.checkpoint import load_checkpoint, save_checkpoint
from evaluation.training.config import RunFacts, TrainingConfig
from evaluation.training.errors import Diverged, ResumeError, StepFailed, TrainingError
from evaluation.training.layout import describe, weight_problems
from evaluation.training.state import State
from evaluation.training.tasks import TASKS, Batch, MakeNetwork
from evaluation.training.timeline import BACKWARD, PROFILE, BackwardSpans, profiled

WARM_UP = 0.05  # of all steps
PROFILED_STEP, SPANNED_STEP = 1, 2  # the first is not like the others
METRICS, CHECKPOINT = "metrics.jsonl", "checkpoint.safetensors"


class Trained(RunFacts):
    """What a run gave. Its metrics file has a line of JSON for every step."""

    losses: list[float]


@dataclass(frozen=True)
class How:
    """What of a run does not change its numbers."""

    folder: Path
    device: str = "cpu"
    threads: int | None = None
    checkpoint_every: int = 0  # 0: only the last step
    samples: int = 500
    trace: bool = False


class Trainer:
    """A run and its folder: metrics.jsonl, checkpoint.safetensors, and pictures and traces.

    make(mmdit, config) gives the network; the task's own where it is None. Raises TrainingError for weights that cannot
    be trained.
    """

    def __init__(self, config: TrainingConfig, how: How, make: MakeNetwork | None = None) -> None:
        self.config, self.how = config, how
        self.task = TASKS[config.task](config)
        self.mmdit = import_module("mmdit")
        torch.manual_seed(config.seed)
        network = (make or self.task.make)(self.mmdit, config)
        if config.start:
            begun = load_checkpoint(Path(config.start)).tensors
            weights = {name.removeprefix("network."): t for name, t in begun.items() if name.startswith("network.")}
            network.load_state_dict(weights)
        if problems := weight_problems(network.named_parameters()):
            raise TrainingError("\n  ".join(("weights that cannot be trained:", *problems)))
        self.first_weights_sha256 = hash_weights(network)
        dtype = torch.float32 if config.dtype == "autocast" else getattr(torch, config.dtype)
        self.network = network.to(how.device, dtype).train()
        self.state = State(self.network, config.learning_rate, config.ema, config.seed)
        self.done, self.seconds, self.losses = 0, 0.0, []
        self.saved: int | None = None
        self.path: str | None = None
        self.earlier: dict[str, int] = {}  # layouts counted before this process, and in it
        self.counted: dict[str, int] = {}
        how.folder.mkdir(parents=True, exist_ok=True)
        self.metrics, self.checkpoint = how.folder / METRICS, how.folder / CHECKPOINT

    def resume(self) -> None:
        """Go on from the checkpoint, to the same bits as a run that never stopped. Raises ResumeError for another's."""
        tensors, values = load_checkpoint(self.checkpoint, self.state.tensors())
        check_same(TrainingConfig.model_validate_json(values["config"]), self.config, self.checkpoint)
        if values["first_weights_sha256"] != self.first_weights_sha256:
            raise ResumeError(f"{self.checkpoint}: its run began with other weights than this tree's")
        self.state.restore(tensors)
        self.done, self.seconds, self.path = values["step"], values["seconds"], values["path"]
        self.saved = self.done
        self.earlier = json.loads(values["layouts"])
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)[: self.done]
        if len(lines) < self.done:
            raise ResumeError(f"{self.metrics}: expected a line for each of {self.done} steps, got {len(lines)}")
        self.losses = [json.loads(line)["loss"] for line in lines]
        self.metrics.write_text("".join(lines), encoding="utf-8")

    def save(self) -> None:
        values = {
            "step": self.done,
            "seconds": self.seconds,
            "path": self.path,
            "layouts": json.dumps(self.layouts()),
            "first_weights_sha256": self.first_weights_sha256,
            "config": self.config.model_dump_json(),
        }
        save_checkpoint(self.checkpoint, self.state.tensors(), values)
        self.saved = self.done

    def run(self, until: int | None = None) -> None:
        """Steps up to number `until`, or to the last, with a line of metrics each, and the checkpoint of where it ends.

        Raises Diverged where a loss or a gradient is not finite, StepFailed where a step raises.
        """
        until = self.config.steps if until is None else until
        self._explain()
        mode = "a" if self.done else "w"
        with self.metrics.open(mode, encoding="utf-8", buffering=1) as lines, self._counting():
            start = perf_counter() - self.seconds
            while self.done < until:
                values = self._traced_step() if self.how.trace else self.step()
                self.losses.append(values["loss"])
                self.seconds = perf_counter() - start
                lines.write(json.dumps({"step": self.done} | values | {"seconds": self.seconds}) + "\n")
                self.done += 1
                if self.how.checkpoint_every and self.done % self.how.checkpoint_every == 0:
                    self.save()
        self.save()

    def step(self, spans: BackwardSpans | None = None) -> dict[str, float]:
        """One step's numbers by name; `spans` sees its backward."""
        config = self.config
        batch = tuple(t.to(self.how.device) for t in self.task.draw(config.batch, self.state.generator))
        total = torch.zeros((), device=self.how.device)
        for part in zip(*(t.tensor_split(config.accumulate) for t in batch), strict=True):
            with self._diagnosed(part):
                loss = self._loss(part) * (len(part[0]) / config.batch)
                if spans:
                    spans.watch(loss)
                loss.backward()
            self.state.collect()
            total = total + loss.detach()
        norm = nn.utils.clip_grad_norm_(self.state.masters, config.clip)
        told = torch.stack((total.double(), norm.double())).tolist()  # waits for the GPU, once
        rate = config.learning_rate * share(self.done, config)
        values = {"loss": told[0], "gradient_norm": told[1], "learning_rate": rate}
        self._check_finite(values)
        self.state.update(self.done, rate)
        return values

    def finish(self) -> Trained:
        """What the run gave; the network has the averaged weights from now on."""
        last = hash_weights(self.network)
        self.state.take_averages()
        with torch.no_grad():
            measures = self.task.measure(self.network.eval(), self.how.folder, self.how.samples)
        on_gpu = torch.device(self.how.device).type == "cuda"
        return Trained(
            config=self.config,
            first_weights_sha256=self.first_weights_sha256,
            last_weights_sha256=last,
            losses=self.losses,
            measures=measures,
            layouts=self.layouts(),
            seconds=self.seconds,
            peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
            path=self.path,
        )

    def _loss(self, batch: Batch) -> Tensor:
        device = torch.device(self.how.device).type
        with torch.autocast(device, torch.bfloat16, enabled=self.config.dtype == "autocast"):
            return self.task.loss(self.network, batch)

    def _traced_step(self) -> dict[str, float]:
        if self.done == PROFILED_STEP:
            with profiled(self.how.folder / PROFILE):
                return self.step()
        if self.done == SPANNED_STEP:
            spans = BackwardSpans(self.network)
            values = self.step(spans)
            spans.write(self.how.folder / BACKWARD)
            return values
        return self.step()

    def _explain(self) -> None:
        """Find out which path a step takes, where the tree can tell."""
        if self.path is None and hasattr(self.mmdit, "explain"):
            count = -(-self.config.batch // self.config.accumulate)
            batch = tuple(t.to(self.how.device) for t in self.task.draw(count, Generator().manual_seed(0)))
            with self._diagnosed(batch):
                self.path = self.mmdit.explain(self._loss, batch).path

    @contextmanager
    def _diagnosed(self, batch: Batch) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            told = "; ".join(map(describe, batch))
            raise StepFailed(f"step {self.done}: {type(error).__name__}: {error}; the batch: {told}") from error

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Within, the tree counts how its ops' inputs lie, where it can."""
        count = getattr(self.mmdit, "count_layouts", nullcontext)
        with count() as found:
            self.counted = {} if found is None else found
            yield
        self.earlier, self.counted = self.layouts(), {}

    def layouts(self) -> dict[str, int]:
        return dict(Counter(self.earlier) + Counter(self.counted))

    def _check_finite(self, values: dict[str, float]) -> None:
        if all(map(math.isfinite, (values["loss"], values["gradient_norm"]))):
            return
        pairs = zip(self.state.names, self.state.masters, strict=True)
        bad = [name for name, m in pairs if m.grad is not None and not m.grad.isfinite().all()]
        before = f"the loss of the step before was {self.losses[-1]}" if self.losses else "it is the first step"
        kept = "no checkpoint was written" if self.saved is None else f"the checkpoint is of step {self.saved}"
        raise Diverged(
            f"step {self.done}: the loss is {values['loss']}, the gradient's norm {values['gradient_norm']}, the "
            f"learning rate {values['learning_rate']:g}; {before}; gradients that are not finite: {len(bad)} of "
            f"{len(self.state.names)}{', the first of ' + bad[0] if bad else ''}; {kept}; try a lower --learning-rate "
            "or another --dtype"
        )


def share(step: int, config: TrainingConfig) -> float:
    """The share of the learning rate: a linear warm-up, then all of it, or half a cosine down to 0."""
    warm_up = max(1, round(WARM_UP * config.steps))
    if step < warm_up:
        return (step + 1) / warm_up
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, config.steps - warm_up)))


def hash_weights(network: nn.Module) -> str:
    """SHA-256 over the parameters' names and bytes."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.named_parameters()):
        digest.update(name.encode() + weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_same(found: TrainingConfig, wanted: TrainingConfig, file: Path) -> None:
    """Raises ResumeError where `file`, which is of the run `found`, is not of `wanted`."""
    pairs = zip(found.model_dump().items(), wanted.model_dump().values(), strict=True)
    unlike = [f"{name}: {value} there, {other} asked for" for (name, value), other in pairs if value != other]
    if unlike:
        raise ResumeError(f"{file} is of another run: {'; '.join(unlike)}")
