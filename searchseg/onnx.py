"""A network as an ONNX program, and run by onnxruntime: the fastest way on a CPU, at ten seconds of start.

Both packages are optional (pip install "searchseg[onnx]") and imported when they are first needed. The
program is always made here from the checked weights: a model.onnx that comes with a folder is never run.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from searchseg.fold import folded

TOLERANCE = 1e-4  # of class scores, relative to the largest


class OnnxError(RuntimeError):
    """The network cannot be run or written as ONNX here; the message says what is missing or wrong."""


def require(*packages: str) -> None:
    """Raise OnnxError with the cure unless all packages are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise OnnxError(f"{', '.join(missing)} is not installed: pip install {' '.join(packages)}")


def onnx_program(model: nn.Module, shape: tuple[int, int, int, int], dynamic: dict[int, Any]) -> Any:
    """`model` as torch.onnx's ONNXProgram from `image` (B, 3, H, W) to `scores`, traced at `shape`; `dynamic`
    names the dimensions that may differ from it."""
    require("onnx", "onnxscript")
    return torch.onnx.export(
        model.eval(),
        (torch.randn(*shape),),
        dynamo=True,
        dynamic_shapes={"image": dynamic},
        input_names=["image"],
        output_names=["scores"],
        verbose=False,
    )


class OnnxNetwork(nn.Module):
    """`model` run by onnxruntime at one size (height, width) and any number of pictures, with as many threads
    as torch has; OnnxError where it gives other scores."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        require("onnx", "onnxscript", "onnxruntime")
        from onnxruntime import InferenceSession, SessionOptions

        program = onnx_program(folded(model), (2, 3, *size), {0: torch.export.Dim("batch", min=1, max=256)})
        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        content = program.model_proto.SerializeToString()
        self.session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            wanted = model(image)
        difference = (self(image) - wanted).abs().max() / wanted.abs().max().clamp_min(1)
        if not difference <= TOLERANCE:
            raise OnnxError(f'onnxruntime differs from torch by {difference:.1e}: take backend="torch"')

    def forward(self, image: Tensor) -> Tensor:
        (scores,) = self.session.run(None, {"image": image.contiguous().numpy()})
        return torch.from_numpy(scores)
