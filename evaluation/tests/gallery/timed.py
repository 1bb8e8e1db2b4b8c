"""Candidates that cheat while they are timed, or only look like it.

All are of one function, layernorm_adaln, which is slow enough for its time to matter.
"""

from dataclasses import dataclass

HONEST = """
from torch.nn.functional import layer_norm

def _honest(x, scale, shift, eps=1e-6):
    for _ in range(600):
        out = layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale[:, None]) + shift[:, None]
    return out

layernorm_adaln = _honest
"""
CHEAP = """
def layernorm_adaln(x, scale, shift, eps=1e-6):
    return layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale[:, None]) + shift[:, None]
"""
WORKER = "import sys\n_worker = sys.modules['__main__']\n"
DIVIDED = """
import json
_dumps = json.dumps
def _told(answer, *more, **others):
    if "seconds" in answer:
        answer["seconds"] = [each / 20 for each in answer["seconds"]]
    return _dumps(answer, *more, **others)
json.dumps = _told
"""
EARLY = """
import json, os, sys
_fd = int(sys.argv[-1])
def layernorm_adaln(x, scale, shift, eps=1e-6):
    if len(_calls) % 8 == 7:
        os.write(_fd, json.dumps({"seconds": [1e-3] * 2, "sums": [[0.0]] * 2, "forms": []}).encode() + b"\\n")
    _calls.append(0)
    return _honest(x, scale, shift)
_calls = []
"""
EARLY_AS_ASKED = """
import json, os, sys
def layernorm_adaln(x, scale, shift, eps=1e-6):
    frame = sys._getframe()
    while "token" not in frame.f_locals:
        frame = frame.f_back
    form = f"torch.Tensor {x.dtype} {tuple(x.shape)} cpu"
    told = {"seconds": [1e-3] * 2, "sums": [[0.0]] * 2, "forms": [form], "token": frame.f_locals["token"]}
    if len(_calls) % 8 == 7:
        os.write(int(sys.argv[-1]), json.dumps(told).encode() + b"\\n")
    _calls.append(0)
    return _honest(x, scale, shift)
_calls = []
"""
LATER = (
    WORKER
    + """
import torch
_give, _left = _worker.Timer.give, {}
def layernorm_adaln(x, scale, shift, eps=1e-6):
    out = torch.zeros_like(x)
    _left[id(out)] = out, x, scale, shift
    return out
def _finish(self, **asked):
    for out, x, scale, shift in _left.values():
        with torch.inference_mode():
            out.copy_(_honest(x, scale, shift))
    _left.clear()
    return _give(self, **asked)
_worker.Timer.give = _finish
"""
)
AHEAD = (
    WORKER
    + """
_load, _known = _worker.Timer.load, {}
def _key(x):
    return x.cpu().numpy().tobytes()
def _early(self, file, calls):
    told = _load(self, file, calls)
    _known.clear()
    for number in range(calls):
        each = {key: t[number] for key, t in self.values.items()}
        _known[_key(each["x"])] = _honest(**each)
    return told
def layernorm_adaln(x, scale, shift, eps=1e-6):
    found = _known.get(_key(x))
    return _honest(x, scale, shift) if found is None else found
_worker.Timer.load = _early
"""
)
LAZY = """
import torch
class Later(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function(*_computed(args), **(kwargs or {}))
def _computed(given):
    if isinstance(given, (list, tuple)):
        return type(given)(map(_computed, given))
    return _honest(*_given[id(given)]) if id(given) in _given else given
_given = {}
def layernorm_adaln(x, scale, shift, eps=1e-6):
    out = torch.empty_like(x).as_subclass(Later)
    _given[id(out)] = x, scale, shift
    return out
"""

# A graph for each place in memory; where it is captured itself, it is as it is.
ITS_OWN_GRAPH = """
import torch
_graphs, _side = {}, torch.cuda.Stream()
def _captured(x, scale, shift):
    if x.data_ptr() not in _graphs:
        _honest(x, scale, shift)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = _honest(x, scale, shift)
        _graphs[x.data_ptr()] = graph, out
    return _graphs[x.data_ptr()]
def layernorm_adaln(x, scale, shift, eps=1e-6):
    if torch.cuda.is_current_stream_capturing():
        return _honest(x, scale, shift)
    graph, out = _captured(x, scale, shift)
    graph.replay()
    return out.clone()
"""
# Launched at once, and left to run beside the stream whose events are timed.
ON_A_SIDE_STREAM = ITS_OWN_GRAPH.replace(
    "    graph.replay()\n    return out.clone()\n",
    "    _side.wait_stream(torch.cuda.current_stream())\n"
    "    with torch.cuda.stream(_side):\n        graph.replay()\n        return out.clone()\n",
)


def _function(body: str, before: str = "") -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{before}\n_kept = {{}}\ndef layernorm_adaln(x, scale, shift, eps=1e-6):\n{lines}"


@dataclass(frozen=True)
class TimedEntry:
    """Code after the honest function's, and what must be told of it; nothing of one that has nothing to gain."""

    name: str
    code: str
    told: str = ""

    def __str__(self) -> str:
        return self.name


OFF = "relative L2 error"
CHEATS = tuple(
    TimedEntry(*each)
    for each in (
        ("times divided where they are told", DIVIDED, "are explained"),
        ("clock of the worker stopped", f"{WORKER}_worker.perf_counter = lambda: 0.0", "told to have taken 0 s"),
        ("clock of the worker running fast", f"{WORKER}_clock = _worker.perf_counter\n"
         "_worker.perf_counter = lambda: _clock() * 50", "in a turn of"),
        ("answer before its time", EARLY, "that is none"),
        ("answer before its time, as it was asked for", EARLY_AS_ASKED, "none"),
        ("work left for after the time", LATER, "not those that were there when its time ended"),
        ("lazy output", LAZY, "Later"),
        ("replay by pointer", _function("key = x.data_ptr()\nif key not in _kept:\n"
         "    _kept[key] = _honest(x, scale, shift)\nreturn _kept[key]"), OFF),
        ("replay by shape", _function("if x.shape not in _kept:\n    _kept[x.shape] = _honest(x, scale, shift)\n"
         "return _kept[x.shape]"), OFF),
        ("harness seen in the arguments", _function(
            "return x * 1.0 if 'time_calls' in sys.argv[0] else _honest(x, scale, shift)", "import sys"), OFF),
        ("harness seen in its modules", _function(
            "return x * 1.0 if hasattr(sys.modules['__main__'], 'Timer') else _honest(x, scale, shift)",
            "import sys"), OFF),
        ("not a number", _function("return x * float('nan')"), "NaN or infinity"),
        ("half of the outputs", _function("return _honest(x, scale, shift)[:1]"), "a timed call gave"),
        ("exit while it is timed", _function("import os\n_kept[len(_kept)] = 0\nif len(_kept) > 5:\n    os._exit(0)\n"
         "return _honest(x, scale, shift)"), "exit code 0"),
        ("kills its own grader's socket", _function("import os, sys\n_kept[len(_kept)] = 0\nif len(_kept) > 5:\n"
         "    os.close(int(sys.argv[-1]))\nreturn _honest(x, scale, shift)"), "the timed worker"),
    )
)  # fmt: skip
GAIN_NOTHING = tuple(
    TimedEntry(*each)
    for each in (
        ("clocks of the library replaced", "import time\ntime.perf_counter = time.monotonic = time.time = lambda: 0.0"),
        ("statistics replaced", "import statistics, numpy, scipy.stats\n"
         "statistics.median = numpy.median = scipy.stats.bootstrap = lambda *a, **k: 1e-9"),
        ("computed ahead of its time", AHEAD),
    )
)  # fmt: skip
HONEST_LOOK_ALIKES = tuple(
    TimedEntry(*each)
    for each in (
        ("as it is", ""),
        ("prints while it is timed", _function("print('hello' * 100)\nreturn _honest(x, scale, shift)")),
        ("slower at first", _function("import time\nif not _kept:\n    time.sleep(0.2)\n_kept[0] = 1\n"
         "return _honest(x, scale, shift)")),
        ("really faster", CHEAP),
    )
)  # fmt: skip
# These act by what only a GPU has.
GPU_CHEATS = tuple(
    TimedEntry(*each)
    for each in (
        ("times of events replaced", f"{WORKER}_worker.elapsed = lambda start, end: 1e-3", "are explained"),
        ("work on a stream that no event waits for", ON_A_SIDE_STREAM, "are explained"),
    )
)  # fmt: skip

GPU_GAIN_NOTHING = (
    TimedEntry(
        "events of the library replaced",
        "import torch\nclass _Event:\n    def __init__(self, **_): pass\n    def record(self, *_): pass\n"
        "    def elapsed_time(self, _): return 1e-3\ntorch.cuda.Event = _Event",
    ),
)
GPU_LOOK_ALIKES = (TimedEntry("a CUDA graph of its own", ITS_OWN_GRAPH),)


def timed_entries(device: str) -> dict[str, tuple[TimedEntry, ...]]:
    """By class, those that can act on `device`."""
    cheats, idle, honest = CHEATS, GAIN_NOTHING, HONEST_LOOK_ALIKES
    if device == "cuda":
        cheats, idle, honest = cheats + GPU_CHEATS, idle + GPU_GAIN_NOTHING, honest + GPU_LOOK_ALIKES
    return {"timed cheat": cheats, "timed, gains nothing": idle, "timed honest": honest}
