"""The front matter of a model card: what the Hub indexes, filters and shows beside the text."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

LIBRARY = "searchseg"
LICENSE = "apache-2.0"
MIOU, PARAMETERS = "mean_iou", "parameters"  # metric types in the model-index; hub.list reads them


def model_metadata(architecture: str, metrics: dict[str, Any], title: str) -> dict[str, Any]:
    """Front matter of a network with scores; KeyError when metrics.json lacks an entry."""
    protocol, training = metrics["protocol"], metrics["training"]
    shared = {
        "task_type": "image-segmentation",
        "task_name": protocol["task"],
        "dataset_type": protocol["dataset"],
        "dataset_name": f"{protocol['task']} ({protocol['rows']} rows)",
        "dataset_split": protocol["split"],
        "dataset_revision": protocol["revision"],
    }
    score = EvalResult(
        metric_type=MIOU,
        metric_name=f"mIoU, {protocol['rule']}",
        metric_value=round(metrics["miou"], 4),
        **shared,
    )
    size = EvalResult(
        metric_type=PARAMETERS, metric_name="parameters", metric_value=metrics["parameters"], **shared
    )
    return ModelCardData(
        model_name=title,
        library_name=LIBRARY,
        pipeline_tag="image-segmentation",
        license=LICENSE,
        tags=[LIBRARY, architecture, "neural-architecture-search", "image-segmentation"],
        datasets=hub_ids(training.get("dataset"), protocol["dataset"]),
        base_model=(hub_ids(training.get("base_model")) or [None])[0],
        eval_results=[score, size],
    ).to_dict()


def genotype_metadata(search: dict[str, Any]) -> dict[str, Any]:
    """Front matter of a genotype without weights: no pipeline and no scores, since nothing runs."""
    return ModelCardData(
        library_name=LIBRARY,
        license=LICENSE,
        tags=[LIBRARY, "genotype", "neural-architecture-search", "image-segmentation"],
        datasets=hub_ids(search.get("dataset")),
    ).to_dict()


def hub_ids(*names: Any) -> list[str] | None:
    """Those names that are Hub ids of the form owner/name, each once; None when there is none.

    A record calls a dataset on disk "folder NAME", which is no id.
    """
    return [name for name in dict.fromkeys(names) if is_hub_id(name)] or None


def is_hub_id(name: Any) -> bool:
    """Whether `name` has the form owner/name that the Hub accepts."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return isinstance(name, str) and name.count("/") == 1
