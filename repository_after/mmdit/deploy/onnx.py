"""Export a model to ONNX by torch's dynamo exporter, and check it in onnxruntime.

    python -m mmdit.deploy.onnx --config model.json --weights model.safetensors --output model.onnx

Batch, length and context length stay open. Opset 23 has Attention as one operator. RMSNormalization is decomposed in
both: RMSNorm scales a row before it squares it, so that no magnitude overflows, which the operator does not.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmdit.config import MMDiTConfig
from mmdit.deploy.numbers import present, worst_error
from mmdit.deploy.subjects import AXES, SIZES
from mmdit.model import MMDiT

OPSETS = (18, 23)
DTYPES = {"float32": torch.float32, "float16": torch.float16}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3}
LARGE = 2**31 - 2**24  # bytes of weights, above which a file of protobuf cannot hold them
CHECKED = ((2, 17, 5), (1, 1, 1), (3, 40, 9))  # batch, length, context


def export_onnx(
    model: nn.Module, inputs: Dict[str, Tensor], axes: Dict[str, Any], opset: int, metadata: Dict[str, str]
) -> Any:
    """torch's ONNXProgram of the model in eval mode, for any sizes of the open axes.

    Args:
        inputs: by name, of an example's sizes.
        axes: which of their axes are open, as torch.export takes them.
        opset: of OPSETS.
        metadata: names and values that the file shall carry.

    Raises ValueError for another opset.
    """
    if opset not in OPSETS:
        raise ValueError(f"opset: expected one of {OPSETS}, got {opset}")
    program = torch.onnx.export(
        model.eval(), (), kwargs=inputs, dynamo=True, opset_version=opset, dynamic_shapes=axes, verbose=False
    )
    program.model.metadata_props.update(metadata)
    return program


def save(program: Any, path: Path, weights: int, external: bool = False) -> None:
    """Write the program, its weights (so many bytes) beside it in PATH.data where one file cannot hold them."""
    program.save(str(path), external_data=external or weights > LARGE)


def onnx_outputs(session: Any, inputs: Dict[str, Tensor]) -> List[Tensor]:
    """The outputs of an onnxruntime.InferenceSession."""
    return [torch.from_numpy(out) for out in session.run(None, {name: t.numpy() for name, t in inputs.items()})]


def draw(
    config: MMDiTConfig, shape: Tuple[int, int, int], names: Sequence[str], dtype: torch.dtype
) -> Dict[str, Tensor]:
    """The named inputs of a stack, at batch, length and context."""
    (batch, length, context), dim = shape, config.dim_base
    drawn = {
        "x": torch.randn(batch, length, dim, dtype=dtype),
        "y": torch.randn(batch, dim, dtype=dtype),
        "context": torch.randn(batch, context, dim, dtype=dtype),
        "attn_mask": torch.rand(batch, length, length) > 0.3,
        "start_pos": torch.randint(64, (batch,)),
    }
    return {name: drawn[name] for name in names}


def names_of(config: MMDiTConfig, masked: bool, positions: bool) -> List[str]:
    wanted = {"x": True, "y": config.conditioning, "context": config.use_cross_attn}
    return [name for name, given in {**wanted, "attn_mask": masked, "start_pos": positions}.items() if given]


def load_weights(model: nn.Module, path: Path) -> None:
    """Of a .safetensors file, or of one that torch.save wrote; all of the model's and no others."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        model.load_state_dict(load_file(path))
    else:
        model.load_state_dict(torch.load(path, weights_only=True))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m mmdit.deploy.onnx", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="JSON, MMDiTConfig's fields (default: the target sizes)")
    add("--weights", type=Path, metavar="FILE", help="state_dict, .safetensors or torch.save's (default: random)")
    add("--output", type=Path, metavar="FILE", required=True, help="the .onnx file to write")
    add("--opset", type=int, choices=OPSETS, default=OPSETS[-1], help="(default: %(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="of weights and inputs (default: %(default)s)")
    add("--mask", action="store_true", help="with an input attn_mask (B, L, L) bool")
    add("--positions", action="store_true", help="with an input start_pos (B,) int64")
    add("--external-data", action="store_true", help="weights in a file beside it, as they are above 2 GB anyway")
    given = parser.parse_args(arguments)
    config = MMDiTConfig(**json.loads(given.config.read_text())) if given.config else MMDiTConfig()
    dtype = DTYPES[given.dtype]
    model = MMDiT(config).eval().requires_grad_(False)
    if given.weights:
        load_weights(model, given.weights)
    model = model.to(dtype)
    names = names_of(config, given.mask, given.positions)
    axes = {name: {at: SIZES[size] for at, size in enumerate(AXES[name]) if size} for name in names}
    metadata = {"config": json.dumps(asdict(config)), "dtype": given.dtype, "torch": torch.__version__}
    program = export_onnx(model, draw(config, CHECKED[0], names, dtype), axes, given.opset, metadata)
    save(program, given.output, sum(p.nbytes for p in model.parameters()), given.external_data)

    import onnxruntime

    session = onnxruntime.InferenceSession(given.output, providers=["CPUExecutionProvider"])
    wide, worst = model.float(), 0.0
    for shape in CHECKED:
        inputs = draw(config, shape, names, dtype)
        want = wide(**{name: t.float() if t.is_floating_point() else t for name, t in inputs.items()})
        error = worst_error(onnx_outputs(session, inputs), present(want))
        print(f"batch {shape[0]}, length {shape[1]}, context {shape[2]}: relative error {error:.1e}")
        worst = max(worst, error)
    print(f"{given.output}: opset {given.opset}, {given.dtype}, inputs {', '.join(names)}")
    if not worst <= TOLERANCE[dtype]:
        print(f"expected a relative error of at most {TOLERANCE[dtype]:.0e} in onnxruntime, got {worst:.1e}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
