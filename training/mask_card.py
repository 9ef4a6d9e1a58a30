"""The card of a dataset of masks: columns, classes, and which network made it from which data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCardData

from searchseg.config import ModelConfig
from training.dataset_folder import table

MARK = "Written by SearchSeg's `python -m training.segment`"  # our own datasets are known by it
COLUMNS = {
    "image": "the picture, its bytes as they were",
    "row": "number of the row in its split of the source",
    "name": "what the source calls the picture",
    "mask": "8-bit grey PNG of the upright picture's size: every pixel's class id; null where there is none",
    "shares": "parts of the picture, 0 to 1, that the classes cover, by id",
    "error": "why there is no mask, else null",
}
CARD = """
# Masks of {data}, by {model}

Made by a network, looked at by nobody: good for looking around, for pre-labelling and self-training, not as
ground truth.

| what | |
|---|---|
| model | {model}{commit}, fingerprint `{fingerprint}` |
| source | {data}{revision} |
| value 255 | {doubt} |

| split | rows | without a mask |
|---|---|---|
{splits}

| column | what |
|---|---|
{columns}

| class id | class | colour |
|---|---|---|
{classes}

```json
{id2label}
```

## Use

```python
from datasets import load_dataset
dataset = load_dataset("{place}")
```

## Licence

The licence of the source is not known to the program that wrote this card: look it up before you pass the
pictures or the masks on, and write it here.

{mark}.
"""


def mask_card(
    contents: Mapping[str, Any], config: ModelConfig, columns: Sequence[str], files: Mapping[str, str],
    faults: Mapping[str, int], place: str,
) -> str:  # fmt: skip
    """README.md of the dataset.

    contents: what was segmented by what (see training.segment); columns of the result; files: their pattern a
    split; faults: pictures without a mask a split; place: what load_dataset opens.
    """
    front = DatasetCardData(
        license="unknown",
        task_categories=["image-segmentation"],
        tags=["searchseg"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": pattern} for split, pattern in files.items()],
            }
        ],
    )
    body = CARD.format(
        **{key: contents[key] for key in ("model", "data", "fingerprint")},
        commit=f" at commit `{contents['commit']}`" if contents["commit"] else "",
        doubt=f"the class has a probability below {contents['sure']}" if contents["sure"] else "not used",
        revision=f" at revision `{contents['revision']}`" if contents["revision"] else "",
        splits=table((split, rows, faults[split]) for split, rows in contents["rows"].items()),
        columns=table((f"`{column}`", COLUMNS[column]) for column in columns),
        classes=table(
            (i, name.replace("|", "\\|"), f"`{color}`")
            for i, (name, color) in enumerate(zip(config.classes, config.colors, strict=True))
        ),
        id2label=json.dumps(dict(enumerate(config.classes))),
        place=place,
        mark=MARK,
    )
    return f"---\n{front.to_yaml()}\n---\n{body}"
