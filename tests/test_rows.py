"""Proves that training meets every row, in seeded order, and augmented by (seed, epoch, row) alone."""

import io
import random
from collections import Counter
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw

from searchseg.config import ModelConfig
from searchseg.task import IGNORE, TaskError, custom, pet
from training import rows as rows_module
from training.rows import (
    Augmentation,
    CheckedRows,
    EpochSampler,
    Examples,
    augmentation,
    halves,
    load_rows,
    loader,
)

SIZE = 32
TASK = custom(["dark", "bright"], ignore_value=9)
CONFIG = ModelConfig(
    "unet", {"widths": [2, 4], "num_classes": 2}, TASK.classes, TASK.colors, (SIZE, SIZE)
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def drawn(number: int, width: int = 60, height: int = 44) -> dict:
    """A picture that is white where its mask is 1 and black where it is 0: an ellipse left of the middle."""
    mask, dice = Image.new("L", (width, height), 0), random.Random(number)
    left, top = dice.randint(2, 8), dice.randint(2, 8)
    ImageDraw.Draw(mask).ellipse((left, top, left + dice.randint(20, 30), top + 30), fill=1)
    return {"image": mask.point(lambda value: 255 * value).convert("RGB"), "mask": mask}


def dataset(rows: list[dict]) -> datasets.Dataset:
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    pictures = {key: datasets.Image() for key in ("image", "mask") if key in columns}
    others = datasets.Dataset.from_dict({k: v for k, v in columns.items() if k not in pictures}).features
    return datasets.Dataset.from_dict(columns, datasets.Features(**pictures, **others))


def checked(number: int = 6, size: int | None = 48) -> CheckedRows:
    return CheckedRows(dataset([drawn(i) for i in range(number)]), TASK, size, "rows", quiet=True)


def examples(augment: str = "strong", seed: int = 0, size: int = SIZE, share: float = 1.0) -> Examples:
    return Examples(checked(), Augmentation(CONFIG, augment, seed, size, share))


def labelled(kind: object, count: int = 203, labels: int = 37) -> datasets.Dataset:
    values = [int(label) for label in np.random.default_rng(5).integers(0, labels, count)]
    return datasets.Dataset.from_dict({"label": values}, datasets.Features(label=kind))


BREEDS = datasets.ClassLabel(names=[f"breed {i}" for i in range(37)])


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_halves_cover_every_row_once(count):
    for rows in (datasets.Dataset.from_dict({"x": list(range(count))}), labelled(BREEDS, count)):
        weights, alpha = halves(rows, seed=0)
        assert sorted(weights + alpha) == list(range(count))
        assert 0 <= len(weights) - len(alpha) <= 1
        assert weights == sorted(weights) and alpha == sorted(alpha)


@pytest.mark.parametrize(
    "kind",
    [
        BREEDS,
        datasets.Value("int64"),
        pytest.param(datasets.Value("int32")),
    ],
    ids=str,
)
def test_halves_hold_the_same_share_of_every_label(kind):
    rows = labelled(kind)
    labels = rows["label"][:]
    weights, alpha = (Counter(labels[i] for i in half) for half in halves(rows, seed=3))
    assert all(abs(weights[label] - alpha[label]) <= 1 for label in set(labels))


def test_halves_are_those_of_the_seed():
    for rows in (labelled(BREEDS), datasets.Dataset.from_dict({"x": list(range(50))})):
        assert halves(rows, 1) == halves(rows, 1)
        assert len({tuple(halves(rows, seed)[0]) for seed in range(8)}) == 8


@pytest.mark.parametrize(
    "kind",
    [
        "picture",
        pytest.param("list"),
    ],
)
def test_a_label_column_that_is_no_class_is_left_alone(kind):
    if kind == "picture":  # as in CamVid, where `label` is the mask
        rows = dataset([{**drawn(i), "label": i} for i in range(5)]).remove_columns("label")
        rows = rows.rename_column("mask", "label")
    else:
        rows = datasets.Dataset.from_dict({"label": [[1, 2]] * 5})
    assert sorted(chain(*halves(rows, 0))) == list(range(5))


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(range(10, 40), seed)
        sampler.epoch = epoch
        return list(sampler)

    random.seed(1), torch.manual_seed(1)
    first = order(0, 3)
    random.seed(2), torch.manual_seed(2)
    assert order(0, 3) == first and len(EpochSampler(range(10, 40), 0)) == 30
    assert sorted(first) == [(3, index) for index in range(10, 40)]
    orders = {tuple(i for _, i in order(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16 and tuple(range(10, 40)) not in orders


def test_a_sampler_of_a_later_epoch_does_not_need_the_earlier_ones():
    used, fresh = EpochSampler(range(20), 0), EpochSampler(range(20), 0)
    for used.epoch in range(3):
        list(used)
    fresh.epoch = 2
    assert list(used) == list(fresh)


@pytest.mark.parametrize("count, sizes", [(6, [4]), (8, [4, 4]), (3, [3]), (4, [4])])
def test_the_last_smaller_batch_is_dropped_unless_it_is_the_only_one(count, sizes):
    some = Examples(checked(8), Augmentation(CONFIG, "none", 0, SIZE))
    batches = list(loader(some, range(count), seed=0, batch_size=4))
    assert [len(images) for images, _ in batches] == sizes
    for images, masks in batches:
        assert images.shape[1:] == (3, SIZE, SIZE) and images.dtype == torch.float32
        assert masks.shape[1:] == (SIZE, SIZE) and masks.dtype == torch.int64


def test_workers_change_nothing():
    def batches(workers: int) -> list:
        item = loader(examples(), range(6), seed=1, batch_size=2, workers=workers)
        item.sampler.epoch = 5
        return list(item)

    alone, helped = batches(0), batches(1)
    assert len(alone) == 3
    for one, two in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_augmentation_depends_on_seed_epoch_and_row_alone():
    some, keys = examples(), [(epoch, index) for epoch in range(2) for index in range(4)]
    forwards = {key: some[key] for key in keys}
    torch.manual_seed(99)
    random.seed(99)
    other = examples()  # another object, other global seeds, the other way round
    for key in reversed(keys):
        assert all(torch.equal(a, b) for a, b in zip(other[key], forwards[key], strict=True))
    again = {examples(seed=seed)[epoch, 0][0].sum().item() for seed in range(4) for epoch in range(4)}
    assert len(again) == 16


def test_rows_that_look_alike_are_augmented_differently():
    twins = CheckedRows(dataset([drawn(0)] * 8), TASK, 48, "rows", quiet=True)
    some = Examples(twins, Augmentation(CONFIG, "strong", 0, SIZE))
    assert len({some[0, index][0].sum().item() for index in range(8)}) == 8


def test_augmentation_leaves_the_random_numbers_of_training_alone():
    some = examples()
    torch.manual_seed(0)
    wanted = torch.rand(4)
    torch.manual_seed(0)
    some[0, 0]
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize("augment", ["none", "strong"])
def test_picture_and_mask_move_together(augment):
    some, seen = examples(augment), set()
    for epoch in range(12):
        image, mask = some[epoch, epoch % 6]
        assert image.shape == (3, SIZE, SIZE) and mask.shape == (SIZE, SIZE)
        assert set(mask.unique().tolist()) == {0, 1}  # nearest: nothing between the classes
        grey = image.mean(0)
        bright = grey > (grey.max() + grey.min()) / 2  # colour changes keep what is bright bright
        assert (bright == mask.bool()).float().mean() > 0.95
        seen.add(round(mask.nonzero()[:, 1].float().mean().item()))
    assert (max(seen) > SIZE * 0.55) == (augment == "strong")  # a flip brings the ellipse to the right


def test_strong_augmentation_crops_flips_and_recolours():
    some, plain = examples(), examples("none")
    shares = [some[epoch, 0][1].float().mean().item() for epoch in range(12)]
    assert max(shares) > 1.2 * plain[0, 0][1].float().mean().item()  # a crop enlarges
    whites = {round(some[epoch, 0][0].max().item(), 2) for epoch in range(12)}
    assert len(whites) > 3 and min(whites) < plain[0, 0][0].max().item() - 0.1
    assert torch.equal(plain[0, 0][0], plain[7, 0][0])


def test_examples_are_normalised_as_the_model_will_see_them():
    image, _ = examples("none")[0, 0]
    corner = image[:, 0, -1]  # black
    assert torch.allclose(corner, -torch.tensor(CONFIG.image_mean) / torch.tensor(CONFIG.image_std))


@pytest.mark.parametrize("size", [None, 25])
def test_nothing_comes_between_a_class_and_ignored_pixels(size):
    row = drawn(0)
    row["mask"] = row["mask"].point(lambda value: 9 if value else 1)
    rows = CheckedRows(dataset([row]), TASK, size, "rows", quiet=True)
    assert set(rows[0][1].unique().tolist()) == {1, IGNORE}
    for epoch in range(4):
        mask = Examples(rows, Augmentation(CONFIG, "strong", 0, SIZE))[epoch, 0][1]
        assert set(mask.unique().tolist()) == {1, IGNORE}


def test_strong_augmentation_mirrors_about_every_other_picture():
    mask = Image.new("L", (60, 44), 0)
    mask.paste(1, (0, 0, 30, 44))  # the left half
    row = {"image": drawn(0)["image"], "mask": mask}
    rows = CheckedRows(dataset([row]), TASK, None, "rows", quiet=True)
    some = Examples(rows, Augmentation(CONFIG, "strong", 0, SIZE))
    masks = [some[epoch, 0][1].float() for epoch in range(40)]
    left, right = (sum(m[:, side].mean() > m[:, 31 - side].mean() for m in masks) for side in (0, 31))
    assert left >= 10 and right >= 10


@pytest.mark.parametrize("size", [None, 20])
@pytest.mark.parametrize("budget", [0, 30_000, 2**30])
def test_a_small_cache_gives_the_same_rows(size, budget, monkeypatch):
    wanted = checked(size=size)
    assert wanted.kept is not None and len(wanted) == 6
    monkeypatch.setattr(rows_module, "CACHE_BYTES", budget)
    some = checked(size=size)
    memory = sum(image.numel() + mask.numel() for image, mask in some.kept or [])
    assert memory <= budget and (some.kept is None) == (6 * wanted[0][1].numel() * 4 > budget)
    for index in range(6):
        for one, two in zip(some[index], wanted[index], strict=True):
            assert one.dtype == torch.uint8 and torch.equal(one, two)
    assert np.array_equal(some.pixels, wanted.pixels)


def test_checked_rows_count_the_pixels_of_every_class():
    some = checked(size=None)
    masks = [drawn(i)["mask"] for i in range(6)]
    assert some.pixels[1] == sum(np.array(mask).sum() for mask in masks)
    assert some.pixels.sum() == 6 * 60 * 44
    assert checked(size=16).pixels.sum() == 6 * 16 * 16


@pytest.mark.parametrize("name", ["none", "strong"])
def test_rows_of_two_to_three_keep_their_proportions(name):
    box = Image.new("L", (90, 60), 0)
    box.paste(1, (30, 15, 60, 45))  # a square in a picture of 3 to 2
    image = Image.merge("RGB", [box.point(lambda v: 200 * v)] * 3)
    rows = CheckedRows(dataset([{"image": image, "mask": box}] * 2), TASK, (60, 90), "rows", quiet=True)
    assert rows[0][1].shape == (60, 90) and rows[0][0].shape == (3, 60, 90)
    examples = Examples(rows, Augmentation(CONFIG, name, 0, (32, 48)))
    ratios = []
    for epoch in range(60):
        picture, mask = examples[epoch, 0]
        assert picture.shape == (3, 32, 48) and mask.shape == (32, 48)
        places = mask.nonzero()
        inside = len(places) and ((places > 0) & (places < torch.tensor([31, 47]))).all()
        if inside:  # not cut by the crop
            height, width = (places.max(0).values - places.min(0).values + 1).tolist()
            ratios.append(width / height)
    assert len(ratios) > 5 and 0.9 < np.median(ratios) < 1.1, "the square became another shape"


@pytest.mark.parametrize("share", [1.0, 0.25, 0.04])
def test_crops_show_their_share_of_a_picture(share):
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))  # a pixel's value is its column
    across = dataset(
        [{"image": Image.merge("RGB", [Image.fromarray(ramp)] * 3), "mask": Image.new("L", (200, 200))}]
    )
    rows = CheckedRows(across, TASK, None, "rows", quiet=True)
    augment = Augmentation(CONFIG, "strong", 0, SIZE, share)
    augment.transform.transforms = augment.transform.transforms[:1]  # the colours tell the place
    std = CONFIG.image_std[0]
    widths = []
    for epoch in range(80):
        picture, mask = augment(rows[0], epoch, 0)
        assert picture.shape == (3, SIZE, SIZE) and mask.shape == (SIZE, SIZE)
        columns = picture[0, 0] * std * 255
        widths.append((columns.max() - columns.min()).item() * SIZE / (SIZE - 1))
    least, most = (0.4 * share * 0.75) ** 0.5 * 200, min(1.0, (2 * share * 1.34) ** 0.5) * 200
    assert least - 2 < min(widths) < 1.25 * least and 0.85 * most < max(widths) < most + 4


def test_without_a_crop_the_recipe_is_what_it_always_was():
    crop, *_ = augmentation("strong", (30, 40)).transforms
    assert tuple(crop.scale) == (0.4, 1.0) and tuple(crop.size) == (30, 40)
    with pytest.raises(ValueError, match="shows whole pictures"):
        augmentation("none", 32, 0.5)
    with pytest.raises(ValueError, match="'stronger' is none of none, strong, corrupted"):
        augmentation("stronger", 32)


@pytest.mark.parametrize("size", [None, 24])
def test_checked_rows_hold_picture_and_mask_of_one_size(size):
    image, mask = checked(size=size)[2]
    assert image.shape == (3, *mask.shape) and mask.shape == ((44, 60) if size is None else (24, 24))
    agree = (image[0] > 127) == mask.bool()
    assert agree.all() if size is None else agree.float().mean() > 0.97


def test_a_bad_row_stops_the_run_before_it_begins(monkeypatch):
    for budget in (0, 2**30):  # the rows beyond the cache are checked too
        monkeypatch.setattr(rows_module, "CACHE_BYTES", budget)
        bad = dataset([drawn(0), drawn(1), {**drawn(2), "mask": Image.new("L", (60, 44), 7)}])
        with pytest.raises(TaskError, match="row 2: mask value 7"):
            CheckedRows(bad, TASK, 16, "rows", quiet=True)


def test_a_row_that_cannot_be_decoded_is_named():
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    good, bad = [{"bytes": encoded(drawn(0)[key]), "path": None} for key in ("image", "mask")], b"no picture"
    rows = datasets.Dataset.from_dict(
        {"image": [good[0], {"bytes": bad, "path": None}], "mask": [good[1]] * 2}, features
    )
    with pytest.raises(TaskError, match="row 1 cannot be decoded"):
        CheckedRows(rows, TASK, 16, "rows", quiet=True)


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_rows_without_a_counted_pixel_are_refused():
    rows = dataset([{**drawn(0), "mask": Image.new("L", (60, 44), 9)}] * 2)
    with pytest.raises(TaskError, match="every pixel of every mask is ignored: check --ignore-value"):
        CheckedRows(rows, TASK, 16, "rows", quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        rows = dataset([drawn(number) for number in numbers])
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("split, count", [("train", 4), ("test", 2), ("train+test", 6), ("train[:3]", 3)])
def test_rows_of_a_folder_are_loaded_by_split(folder, split, count):
    rows = load_rows(str(folder), split, None, TASK)
    assert len(rows) == count and len(CheckedRows(rows, TASK, 8, "rows", quiet=True)) == count


@pytest.mark.parametrize(
    "split, task, words",
    [
        ("validation", TASK, ["'validation'", "train", "test"]),
        ("train[", TASK, ["'train['"]),
        ("train[:0]", TASK, ["no data"]),
        ("train", pet(), ["no column 'segmentation_mask'", "image, mask", "--mask-column"]),
        ("train", custom(["a", "b"], image_column="photo"), ["no column 'photo'", "--image-column"]),
    ],
    ids=["missing split", "broken split", "empty split", "missing mask", "missing picture"],
)
def test_what_is_missing_in_a_dataset_is_named_with_the_cure(folder, split, task, words):
    with pytest.raises(TaskError) as caught:
        load_rows(str(folder), split, None, task)
    assert not [word for word in words if word not in str(caught.value)]


@pytest.mark.parametrize("name", ["no/such/folder", "nobody/nothing", "../nothing"])
def test_a_dataset_that_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=name):
        load_rows(name, "train", None, TASK)


def test_an_empty_folder_is_no_dataset(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match="cannot read dataset"):
        load_rows(str(tmp_path / "empty"), "train", None, TASK)


def parquet(spoil: slice | None = None, **columns: list) -> bytes:
    table, file = pa.table(columns), io.BytesIO()
    pq.write_table(table, file)
    content = bytearray(file.getvalue())
    if spoil:
        content[spoil] = bytes(len(content[spoil]))
    return bytes(content)


NUMBERS = {"image": list(range(1000)), "mask": list(range(1000))}


@pytest.mark.parametrize(
    "files",
    [
        {"train-0": b""},
        {"train-0": b"no parquet"},
        pytest.param({"train-0": b"PAR1" + bytes(100) + b"PAR1"}),
        pytest.param({"train-0": parquet(slice(50, 2000), **NUMBERS)}),
        pytest.param({"train-0": parquet(**NUMBERS), "train-1": parquet(x=[1])}),
        pytest.param({"train-0": parquet(**NUMBERS), "test-0": parquet(slice(50, 2000), **NUMBERS)}),
    ],
    ids=["empty", "other file", "no footer", "spoilt pages", "other columns", "spoilt other split"],
)
def test_a_damaged_dataset_is_one_error_that_names_it(tmp_path, files):
    folder = tmp_path / "leaves"
    (folder / "data").mkdir(parents=True)
    for name, content in files.items():
        (folder / "data" / f"{name}.parquet").write_bytes(content)
    with pytest.raises(TaskError, match="leaves"):
        load_rows(str(folder), "train", None, TASK)
