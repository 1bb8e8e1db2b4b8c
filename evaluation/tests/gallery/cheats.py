"""Cheats: code after the package's own that fakes, replays, hides, or turns on the grader."""

from evaluation.judge.case import Case, Sizes
from evaluation.tests.gallery.entry import OTHER, OTHER_INFERENCE, SMALL, Edit, Entry, plain

INIT = "__init__.py"
BOTH = (*plain("stack"), Case("stack", SMALL, mode="inference"))
LARGE = (*plain("stack"), Case("stack", Sizes(2, 65, 7, 4, 16, layers=2)))
OFF = "relative L2 error"

FORWARD = """
import torch
_forward, _kept = MMDiT.forward, {}
def _cheat(self, x, y=None, context=None, attn_mask=None, start_pos=None):
    honest = lambda: _forward(self, x, y, context, attn_mask, start_pos)
    nothing = AttentionOutput(x * 1.0, None if context is None else context * 1.0)
"""
INSTALL = "\nMMDiT.forward = _cheat"


def forward(body: str, before: str = "") -> str:
    """Replace the stack's forward by `body`, which may use honest(), nothing and _kept."""
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return before + FORWARD + lines + INSTALL


# name: code, the cases that are enough, what the grader must tell
_CODES = {
    "replay by pointer": (
        forward("key = x.data_ptr()\nif key not in _kept:\n    _kept[key] = honest()\nreturn _kept[key]"),
        (OTHER_INFERENCE,),
        OFF,
    ),
    "replay by shape": (
        forward("key = x.shape\nif key not in _kept:\n    _kept[key] = honest()\nreturn _kept[key]"),
        (OTHER_INFERENCE,),
        OFF,
    ),
    "replay by value, whatever the weights": (
        forward("key = x.sum().item()\nif key not in _kept:\n    _kept[key] = honest()\nreturn _kept[key]"),
        (Case("stack", SMALL, mode="inference", scenario="other-weights-in-the-same-memory"),),
        OFF,
    ),
    "weights of the first call kept": (
        forward(
            "key = id(self)\nif key not in _kept:\n    import copy\n    _kept[key] = copy.deepcopy(self)\n"
            "return _forward(_kept[key], x, y, context, attn_mask, start_pos)"
        ),
        (Case("stack", SMALL, mode="inference", scenario="other-weights-in-the-same-memory"),),
        OFF,
    ),
    "identity": (forward("return nothing"), BOTH, OFF),
    "zeros": (forward("return AttentionOutput(x * 0, context * 0)"), BOTH, "all zeros"),
    "constant": (forward("return AttentionOutput(x * 0 + 1, context * 0 + 1)"), BOTH, "one constant"),
    "not a number": (forward("return AttentionOutput(x * torch.nan, context * torch.nan)"), BOTH, "holds NaN"),
    "unwritten memory": (
        forward("return AttentionOutput(torch.empty_like(x), torch.empty_like(context))"),
        (OTHER_INFERENCE,),
        "",
    ),
    "one buffer for all outputs": (
        forward(
            "out = honest()\nfor name, t in zip(('x', 'context'), out):\n"
            "    _kept.setdefault((name, t.shape), torch.empty_like(t)).copy_(t)\n"
            "return AttentionOutput(_kept['x', x.shape], _kept['context', context.shape])"
        ),
        (OTHER_INFERENCE,),
        "changed after it was returned",
    ),
    "work left to a thread": (
        forward(
            "import threading, time\nout = AttentionOutput(torch.zeros_like(x), torch.zeros_like(context))\n"
            "def later():\n    time.sleep(0.05)\n    with torch.inference_mode():\n        real = honest()\n"
            "        for mine, theirs in zip(out, real):\n            mine.copy_(theirs)\n"
            "threading.Thread(target=later).start()\nreturn out"
        ),
        (OTHER_INFERENCE,),
        "",
    ),
    "lazy output": (
        forward(
            "class Later(torch.Tensor):\n    pass\nout = honest()\n"
            "return AttentionOutput(out.x_out.as_subclass(Later), out.context_out)"
        ),
        BOTH,
        "Later, expected torch.Tensor",
    ),
    "input written over": (
        forward("out = honest()\nwith torch.no_grad():\n    x.data.copy_(out.x_out.detach())\nreturn out"),
        (Case("stack", SMALL, mode="inference"),),
        "changed its input x",
    ),
    "weights written over": (
        forward("out = honest()\nwith torch.no_grad():\n    self.layers[0].mlp[0].weight.data.mul_(1.5)\nreturn out"),
        (Case("stack", SMALL, mode="inference"),),
        "changed the weight layers.0.mlp.0.weight",
    ),
    "gradients only": (forward("return honest() if torch.is_grad_enabled() else nothing"), BOTH, OFF),
    "fp32 only": (
        forward("return honest() if x.dtype == torch.float32 else nothing"),
        (*plain("stack"), Case("stack", SMALL, "bfloat16")),
        OFF,
    ),
    "small inputs only": (forward("return honest() if x.shape[1] < 60 else nothing"), LARGE, OFF),
    "first call only": (
        forward("_kept['n'] = _kept.get('n', 0) + 1\nreturn honest() if _kept['n'] == 1 else nothing"),
        (OTHER,),
        OFF,
    ),
    "harness seen in the arguments": (
        forward("return nothing if 'run_cases' in sys.argv[0] else honest()", "import sys"),
        BOTH,
        OFF,
    ),
    "harness seen in the frames": (
        forward(
            "frame = sys._getframe()\nwhile frame:\n    if 'run_cases' in frame.f_code.co_filename:\n"
            "        return nothing\n    frame = frame.f_back\nreturn honest()",
            "import sys",
        ),
        BOTH,
        OFF,
    ),
    "harness seen by its absence of pytest": (
        forward("return honest() if 'pytest' in sys.modules else nothing", "import sys"),
        BOTH,
        OFF,
    ),
    "comparisons of torch patched": (
        forward("return nothing")
        + "\ntorch.allclose = torch.equal = lambda *_, **__: True\ntorch.testing.assert_close = lambda *_, **__: None",
        BOTH,
        OFF,
    ),
    "hashes patched over a changed input": (
        forward("with torch.no_grad():\n    x.data.mul_(2)\nreturn honest()") + "\nimport hashlib\n_known = {}\n"
        "class _Same:\n    hexdigest = lambda self: '0' * 64\nhashlib.sha256 = lambda *_: _Same()",
        (Case("stack", SMALL, mode="inference"),),
        "",
    ),
    "norms patched": (
        forward("return nothing") + "\ntorch.Tensor.norm = lambda self, *_, **__: torch.zeros(())",
        BOTH,
        "",
    ),
    "clocks patched": (
        forward("return nothing") + "\nimport time\ntime.perf_counter = time.monotonic = lambda: 0.0",
        BOTH,
        OFF,
    ),
    "json patched": (
        forward("return nothing")
        + "\nimport json\n_dumps = json.dumps\njson.dumps = lambda *a, **k: _dumps({'facts': {}, 'weights': {}})",
        BOTH,
        "",
    ),
    "exit with success": ("import os\nos._exit(0)", BOTH, "exit code 0"),
    "exit in the middle": (forward("import os\nos._exit(0)"), BOTH, "exit code 0"),
    "results forged": (
        "import os, sys, json, glob\nfor _file in glob.glob(sys.argv[2] + '/*.safetensors'):\n"
        "    _name = os.path.basename(_file)\n    os.link(_file, sys.argv[3] + '/' + _name)\n"
        "    open(sys.argv[3] + '/' + _name[:-11] + 'json', 'w').write(json.dumps({'facts': {}, 'weights': {}}))\n"
        "os._exit(0)",
        BOTH,
        "did not come back",
    ),
    "results that are no tensors": (
        "import os, sys, glob\nfor _file in glob.glob(sys.argv[2] + '/*.safetensors'):\n"
        "    _name = os.path.basename(_file)[:-11]\n"
        "    open(sys.argv[3] + '/' + _name + 'safetensors', 'w').write('x' * 99)\n"
        "    open(sys.argv[3] + '/' + _name + 'json', 'w').write('{}')\nos._exit(0)",
        BOTH,
        "cannot be read",
    ),
    "killing the supervisor": ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", BOTH, "signal 9"),
}

ENTRIES = tuple(
    Entry(name, "cheat", (Edit(INIT, "", code),), cases, told) for name, (code, cases, told) in _CODES.items()
)
