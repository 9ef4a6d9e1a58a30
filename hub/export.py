"""Write a model folder in a format that runs without torch.

  python -m hub.export FOLDER --onnx       FOLDER/model.onnx, for onnxruntime and its kin

The ONNX model takes `image` (B, 3, H, W), float32, normalised as config.json says, of any size from 16
pixels up, and gives `scores` (B, K, H, W). Needed: pip install onnx onnxscript; with onnxruntime
installed the file is
compared with torch before it is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

import torch
from torch import nn

import searchseg
from searchseg.onnx import OnnxError, onnx_program
from searchseg.pretrained import PretrainedError

ONNX = "model.onnx"
TOLERANCE = 1e-3
SIZES = ((37, 53), (160, 128))  # odd and even: the upsampling of the U differs


class ExportError(RuntimeError):
    """The model cannot be written in this format here; the message says what is missing or wrong."""


def export_onnx(model: nn.Module, path: Path) -> float | None:
    """Write `model` to `path`; returns its largest difference from torch, None without onnxruntime.

    Raises ExportError when a package is missing or the two disagree by more than 1e-3; `path` is then
    left as it was.
    """
    batch = torch.export.Dim("batch", min=1, max=64)
    height, width = (torch.export.Dim(name, min=16, max=4096) for name in ("height", "width"))
    try:  # no side is a multiple of 16, so that no upsampling is left out
        program = onnx_program(model, (2, 3, 149, 171), {0: batch, 2: height, 3: width})
    except OnnxError as error:
        raise ExportError(str(error)) from error
    partial = path.with_name(path.name + ".partial")
    try:
        program.save(partial)
        difference = _difference(model, partial)
        if difference is not None and not difference <= TOLERANCE:
            raise ExportError(f"onnxruntime differs from torch by {difference:.1e}, more than {TOLERANCE}")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return difference


def check_onnx(model: nn.Module, path: Path) -> None:
    """Raise ExportError unless `path` gives what `model` gives: it may be of earlier weights."""
    again = "write it again with python -m hub.export FOLDER --onnx, or remove it"
    try:
        difference = _difference(model, path)
    except Exception as error:  # the classes of onnxruntime have no base of their own
        raise ExportError(f"{path.name} cannot be run ({error!s:.120}): {again}") from error
    if difference is None:
        raise ExportError(f"{path.name} cannot be compared: pip install onnxruntime, or remove it")
    if not difference <= TOLERANCE:
        raise ExportError(f"{path.name} differs from the model by {difference:.1e}: {again}")


def _difference(model: nn.Module, path: Path) -> float | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    from onnxruntime import InferenceSession

    session, worst = InferenceSession(path), 0.0
    for size in SIZES:
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = model(image)
        scores = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        worst = max(worst, (scores - wanted).abs().max().item())
    return worst


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m hub.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="model folder; the file is written into it")
    parser.add_argument("--onnx", action="store_true", required=True, help="write model.onnx")
    args = parser.parse_args(argv)
    path = args.folder / ONNX
    try:
        difference = export_onnx(searchseg.from_pretrained(args.folder), path)
    except (PretrainedError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    compared = "not compared: no onnxruntime here" if difference is None else f"torch within {difference:.1e}"
    print(f"{path}, {path.stat().st_size:,} bytes, {compared}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
