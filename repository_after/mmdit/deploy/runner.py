"""Runs artifacts where mmdit is not: a line of JSON in ({kind, path, inputs, outputs}), a line out ("" or the error).

It is run by its path, with -P, so that nothing of mmdit can be imported.
"""

import json
import sys

import torch


def load(kind, path):
    if kind == "torchscript":
        return torch.jit.load(path)
    if kind == "export":
        return torch.export.load(path).module()
    if kind == "aoti":
        from torch._inductor import aoti_load_package

        return aoti_load_package(path)
    raise ValueError(f"kind: expected torchscript, export or aoti, got {kind!r}")


def main():
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            program = load(job["kind"], job["path"])
            with torch.no_grad():
                found = [program(**inputs) for inputs in torch.load(job["inputs"])]
            torch.save([list(out) if isinstance(out, (tuple, list)) else [out] for out in found], job["outputs"])
            error = "mmdit was imported" if "mmdit" in sys.modules else ""
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        print(json.dumps(error), flush=True)


if __name__ == "__main__":
    main()
