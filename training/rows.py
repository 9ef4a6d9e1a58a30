"""From a `datasets` repository to batches: load, check every row once, cut in halves, augment, batch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm import tqdm

from searchseg.config import REDUCING_GAP, ModelConfig
from searchseg.task import Task, TaskError
from training.presets import Size, height_width

CACHE_BYTES = (
    8 * 2**30
)  # decoded rows are kept in memory up to this; larger sets are decoded again every epoch
HOLD_OUT_SEED = 1
AUGMENTATIONS = ("none", "strong", "corrupted")
EVERY_FAULT = "python -m training.check lists every such row"


def load_rows(data: str, split: str, revision: str | None, task: Task) -> Any:
    """Rows of `split` ("train", "train+train_extra", "test[:10]") of a folder or Hub id.

    Raises TaskError when the data, the split or a column is missing, or the split is empty.
    """
    import datasets

    try:
        rows = datasets.load_dataset(data, split=split, revision=revision)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise TaskError(f"cannot read dataset {data!r}: {error.__cause__ or error}") from error
    except ValueError as error:  # datasets names the known splits in it
        raise TaskError(f"dataset {data!r}, split {split!r}: {error}") from error
    if len(rows) == 0:
        raise TaskError(f"split {split!r} of {data!r} is empty: choose another with --split")
    task.check_columns(rows.column_names)
    return rows


class CheckedRows:
    """Rows read by the task's rules, every one of them checked at birth, so that training never meets a
    bad one.

    Pictures and masks are kept as uint8 at `size` (None keeps each row's own size). `only`: numbers of the
    rows to read, in this order, instead of all; errors name rows by these numbers.
    """

    def __init__(
        self, rows: Any, task: Task, size: Size | None, what: str, quiet: bool = False,
        only: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.rows, self.task, self.size = rows, task, size
        self.numbers = range(len(rows)) if only is None else only
        kept: list[tuple[Tensor, Tensor]] | None = []
        self.pixels = np.zeros(256, np.int64)
        budget = CACHE_BYTES
        for index in tqdm(range(len(self)), desc=f"check {what}", unit="row", disable=quiet):
            try:
                pair = self._read(index)
            except TaskError as error:
                raise TaskError(f"{error} ({EVERY_FAULT})") from error
            self.pixels += np.bincount(pair[1].numpy().ravel(), minlength=256)
            budget -= pair[0].numel() + pair[1].numel()
            if kept is not None and budget >= 0:
                kept.append(pair)
            else:
                kept = None
        self.kept = kept
        if not self.pixels[: len(task.classes)].any():
            raise TaskError(
                f"{what}: every pixel of every mask is ignored: check --ignore-value and --classes"
            )

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture (3, H, W) and mask (H, W), both uint8."""
        return self.kept[index] if self.kept is not None else self._read(index)

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        return as_pair(*read_row(self.rows, self.numbers[index], self.task), self.size)


def read_row(rows: Any, index: int, task: Task) -> tuple[Image.Image, np.ndarray]:
    """Picture and mask of a row of a table, as `Task.read` gives them; raises TaskError naming the row."""
    try:
        row = rows[index]
    except (OSError, ValueError, SyntaxError) as error:
        raise TaskError(f"row {index} cannot be decoded: {error}; replace or remove it") from error
    return task.read(row, f"row {index}")


def read_pair(task: Task, row: Any, where: str, size: Size | None) -> tuple[Tensor, Tensor]:
    """Picture (3, H, W) and mask (H, W) of a row, uint8 at `size`; `where` names the row in a TaskError."""
    return as_pair(*task.read(row, where), size)


def as_pair(image: Image.Image, mask: np.ndarray, size: Size | None) -> tuple[Tensor, Tensor]:
    """Picture (3, H, W) and mask (H, W), uint8 at `size`."""
    if size is not None:
        height, width = height_width(size)
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=REDUCING_GAP)
        mask = np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)


def hold_out(rows: Any, share: float) -> tuple[Any, Any]:
    """Rows to learn from and rows kept out: a fixed `share`, the same for every seed of a run; None for 0."""
    if not share:
        return rows, None
    kept = max(1, round(share * len(rows)))
    if not 0 < share < 1 or kept >= len(rows):
        raise TaskError(f"--hold-out {share} of {len(rows)} rows leaves none to learn from: take 0 to 0.5")
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(rows))
    return rows.select(sorted(order[kept:].tolist())), rows.select(sorted(order[:kept].tolist()))


def halves(rows: Any, seed: int) -> tuple[list[int], list[int]]:
    """Two seeded halves of the row numbers, the same share of each value of an integer `label` column in
    both.

    The first is for the weights, the second for alpha. They differ in size by one at most and never overlap.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    kind = getattr(rows.features.get("label"), "dtype", "")  # none for a list
    if kind.startswith(("int", "uint")):
        labels = np.array(rows["label"])
        order = order[np.argsort(labels[order], kind="stable")]
    return sorted(order[0::2].tolist()), sorted(order[1::2].tolist())


def augmentation(name: str, size: Size, crop_share: float = 1.0) -> v2.Transform:
    """Joint transform of picture and mask to `size`: "none" resizes, "strong" also crops, flips and
    colours, "corrupted" is "strong" with the `corruptions` of bad photos.

    Crops have 0.4 to 2 times `crop_share` of a picture's area, at most all of it. ValueError for another
    name, and for "none" and less than all.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"augmentation {name!r} is none of {', '.join(AUGMENTATIONS)}")
    height, width = height_width(size)
    if name == "none":
        if crop_share != 1:
            raise ValueError(f'augmentation "none" shows whole pictures, not {crop_share:.2f} of them')
        return v2.Resize((height, width), antialias=True)
    scale = (0.4 * crop_share, min(1.0, 2 * crop_share))
    ratio = (0.75 * width / height, 1.33 * width / height)
    return v2.Compose(
        [
            v2.RandomResizedCrop((height, width), scale=scale, ratio=ratio, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.3)], p=0.8),
            v2.RandomGrayscale(0.05),
            *(corruptions() if name == "corrupted" else ()),
        ]
    )


def corruptions() -> list[v2.Transform]:
    """What spoils a photo, each in a fifth of the pictures and in the order of a camera: little light and
    contrast, Gaussian blur (sigma in pixels of the example), Gaussian noise (sigma as a share of 255), JPEG.
    Of uint8 pictures (3, H, W), sides of 8 at least; masks pass unchanged.

    After the benchmark of Hendrycks & Dietterich (arXiv 1903.12261); the choice and the strengths are ours.
    """
    noise = [v2.GaussianNoise(sigma=sigma) for sigma in (0.03, 0.08, 0.16)]
    spoilt = (
        v2.ColorJitter(brightness=(0.15, 1.0), contrast=(0.4, 1.0)),
        v2.GaussianBlur(13, (0.3, 2.0)),
        v2.RandomChoice(noise),
        Compression(5, 60),
    )
    return [v2.RandomApply([transform], p=0.2) for transform in spoilt]


def compressed(picture: Image.Image, quality: int) -> Image.Image:
    """The RGB picture as it comes out of a JPEG file of that quality, 1 to 95."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


class Compression(v2.Transform):
    """JPEG of a random quality, `low` to `high`, by Pillow: torchvision's own codec is deprecated."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"quality": int(torch.randint(self.low, self.high + 1, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        picture = compressed(Image.fromarray(inpt.permute(1, 2, 0).numpy()), params["quality"])
        return tv_tensors.wrap(torch.from_numpy(np.array(picture)).permute(2, 0, 1), like=inpt)


class Augmentation:
    """From pairs of uint8 to training examples: image (3, H, W) float32 normalised, mask (H, W) int64.

    `crop_share` is the share of a picture's area that an example shows (`RetrainSettings.crop_share`).
    What happens to a pair depends on (seed, epoch, position) alone, not on workers, processes or order.
    Raises ValueError as `augmentation` does.
    """

    def __init__(
        self, config: ModelConfig, name: str, seed: int, size: Size, crop_share: float = 1.0
    ) -> None:
        self.config, self.seed, self.transform = config, seed, augmentation(name, size, crop_share)

    def __call__(self, pair: tuple[Tensor, Tensor], epoch: int, *position: int) -> tuple[Tensor, Tensor]:
        image, mask = pair
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which also seeds GPUs and takes a fifth of the time of a picture for it
            torch.default_generator.manual_seed(number(self.seed, epoch, *position))
            image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return self.config.normalise(image.as_subclass(Tensor)), mask.as_subclass(Tensor).long()


class Examples(TorchDataset):
    """Augmented training pairs, keyed by (epoch, row)."""

    def __init__(self, rows: CheckedRows, augment: Augmentation) -> None:
        self.rows, self.augment = rows, augment

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        return self.augment(self.rows[index], epoch, index)


class EpochSampler(Sampler[tuple[int, int]]):
    """Row numbers of one epoch in an order that depends on (seed, epoch) alone; each comes with its epoch.

    `skip`: how many to leave out at the beginning.
    """

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        self.indices, self.seed, self.epoch, self.skip = list(indices), seed, 0, 0

    def __len__(self) -> int:
        return len(self.indices)

    def order(self) -> list[int]:
        """The row numbers of the present epoch."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.indices))
        return [self.indices[i] for i in order]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, row) for row in self.order()[self.skip :])


def loader(
    examples: Examples, indices: Sequence[int], seed: int, batch_size: int, workers: int = 0
) -> DataLoader:
    """Batches of `indices` in seeded order; the last, smaller batch is dropped unless it is the only one."""
    return DataLoader(
        examples,
        batch_size=batch_size,
        sampler=EpochSampler(indices, seed),
        num_workers=workers,
        drop_last=len(indices) >= batch_size,
        pin_memory=torch.cuda.is_available(),
    )


def divided_evenly(batch_size: int, processes: int) -> None:
    """Raises TaskError unless every process can take the same share of a batch."""
    if batch_size % processes:
        raise TaskError(
            f"a batch of {batch_size} cannot be shared by {processes} processes evenly: take another number "
            "of processes, or another --batch-size"
        )


def number(*parts: int | str) -> int:
    """63 bits that depend on the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
