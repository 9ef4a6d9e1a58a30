"""A run folder as a finished run leaves it, with an untrained network of smoke widths."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import searchseg
from searchseg.cost import macs, parameters
from searchseg.genotype import random_genotype
from searchseg.network import UShapeConfig

WIDTHS = (4, 8, 16, 32)


def smoke_model() -> searchseg.SearchNet:
    """A SEARCH-Net of smoke widths with its config."""
    return searchseg.SearchNet(
        UShapeConfig(widths=WIDTHS, nodes=2, num_classes=2), random_genotype(2, seed=3)
    )


def metrics_of(model) -> dict:
    """metrics.json as training.evaluate writes it."""
    machine = {"device": "a drawn machine", "threads": 1, "python": "3", "torch": "2", "searchseg": "0"}
    return {
        "schema": 1, "miou": 0.875, "iou": {"background": 0.9, "pet": 0.85}, "pixel_accuracy": 0.95,
        "dice_loss": 0.1, "seconds_per_picture": 0.01, "parameters": parameters(model),
        "macs": macs(model, (1, 3, 32, 32)),
        "protocol": {
            "task": "pet", "dataset": "dpdl-benchmark/oxford_iiit_pet", "revision": "1851519",
            "split": "test", "rows": 10, "classes": ["background", "pet"], "rule": "border ignored",
            "input_size": [32, 32], "scored_at": "size of the mask", "machine": machine,
            "command": "python -m training.evaluate net",
        },
        "training": {"epochs_done": 2, "minutes": 0.1},
    }  # fmt: skip


def write_run(folder: Path, **changes: Any) -> Path:
    """Fill `folder` with a model, its scores (with `changes`), curves and the record of a search."""
    model = smoke_model()
    config = searchseg.ModelConfig(
        "searchnet", {"widths": list(WIDTHS), "nodes": 2, "stem_stride": 1, "num_classes": 2},
        ("background", "pet"), ("#303030", "#f08a24"), (32, 32),
    )  # fmt: skip
    searchseg.save_pretrained(model, folder, config)
    (folder / "metrics.json").write_text(json.dumps(metrics_of(model) | changes))
    (folder / "history.jsonl").write_text('{"epoch": 1, "seconds": 3.0}\n')
    for name in ("loss.png", "miou.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name)
    (folder / "search").mkdir()
    (folder / "search" / "alpha.jsonl").write_text('{"epoch": 1}\n')
    return folder
