"""Proves that a network learns from a teacher's masks as from rows of its task, and that doubt is ignored."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from searchseg.task import TaskError, custom, pet
from training import retrain
from training.pseudo import WithPseudoMasks, with_pseudo_masks
from training.rows import CheckedRows

SIDE = 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def save(folder: Path, rows: list[dict]) -> Path:
    features = {"image": datasets.Image(), "error": datasets.Value("string")}
    kept = {name: feature for name, feature in features.items() if name in rows[0]}
    kept |= {name: datasets.Image() for name in rows[0] if name not in kept}
    path = folder / "data" / "train-00000-of-00001.parquet"
    datasets.Dataset.from_list(rows, features=datasets.Features(kept)).to_parquet(path)
    return folder


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    trimap = np.full((SIDE, SIDE), 2, np.uint8)
    trimap[10:20], trimap[20:22] = 1, 3
    rows = [{"image": picture(n), "segmentation_mask": Image.fromarray(trimap)} for n in range(8)]
    return save(tmp_path / "labelled", rows)


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    """As training.segment --sure --with-image writes them: class ids, 255 for doubt, a row without a mask."""
    ids = np.zeros((SIDE, SIDE), np.uint8)
    ids[5:15], ids[15:18] = 1, 255
    rows = [{"image": picture(100 + n), "mask": Image.fromarray(ids), "error": None} for n in range(4)]
    rows.insert(2, {"image": picture(0), "mask": None, "error": "The file is empty."})
    return save(tmp_path / "taught", rows)


def test_pseudo_masks_are_rows_of_the_task(labelled: Path, taught: Path) -> None:
    task = pet()
    rows = datasets.load_dataset(str(labelled), split="train")
    joined = with_pseudo_masks(rows, str(taught), task)
    assert len(joined) == 8 + 4 and joined[0] == rows[0]
    checked = CheckedRows(joined, task, None, "rows", quiet=True)
    pixels, mask = checked[11]
    assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(np.array(picture(103))))
    assert mask[:5].eq(0).all() and mask[5:15].eq(1).all() and mask[15:18].eq(255).all()
    assert checked.pixels[255] == 8 * 2 * SIDE + 4 * 3 * SIDE


@pytest.mark.parametrize("ignored, told", [(None, "class id 255: give --ignore-value"), (9, None)])
def test_doubt_needs_a_value_that_counts_for_nothing(taught: Path, ignored: int | None, told: str) -> None:
    task = custom(["no", "yes"], ignore_value=ignored)
    pseudo = datasets.load_dataset(str(taught), split="train[:1]")
    joined = WithPseudoMasks([], pseudo, task)
    if told:
        with pytest.raises(TaskError, match=told):
            joined[0]
    else:
        assert set(np.unique(np.array(joined[0]["mask"]))) == {0, 1, 9}


def test_a_teacher_of_another_task_is_told(taught: Path) -> None:
    rows = [{"image": picture(0), "mask": Image.fromarray(np.full((4, 4), 7, np.uint8)), "error": None}]
    with pytest.raises(TaskError, match="class id 7: was the teacher one of another task"):
        WithPseudoMasks([], rows, pet())[0]


def test_a_dataset_of_no_masks_is_refused_with_its_cure(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no column 'mask'.*--with-image"):
        with_pseudo_masks([], str(labelled), pet())
    none = save(tmp_path / "none", [{"image": picture(0), "mask": None, "error": "bad"}])
    with pytest.raises(TaskError, match=r"no row of .* has a mask"):
        with_pseudo_masks([], str(none), pet())


def test_a_training_learns_from_both_and_says_so(
    labelled: Path, taught: Path, tmp_path: Path, capsys
) -> None:
    words = ["--architecture", "unet", "--data", str(labelled), "--preset", "smoke", "--epochs", "1", "--cpu"]
    out = tmp_path / "net"
    assert retrain.main([*words, "--pseudo", str(taught), "--out", str(out)]) == 0
    settings = (out / "settings.json").read_text()
    assert '"rows": 12' in settings and '"dataset": "folder taught"' in settings
    with pytest.raises(SystemExit):
        retrain.main([*words, "--pseudo", str(taught), "--streaming", "--out", str(tmp_path / "other")])
    assert "--pseudo does not go with --streaming" in capsys.readouterr().err
