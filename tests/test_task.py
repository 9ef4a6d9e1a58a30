"""Proves that a row becomes the picture and class ids its task declares, or an error with row and cure."""

import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from searchseg.task import CAMVID_CLASSES, IGNORE, Task, TaskError, camvid, custom, pet

TRIMAP = np.array([[1, 2, 3], [3, 2, 1]], np.uint8)
COLORS = ["#ff0000", "#00ff00", "#0000ff", "#ffffff"]


def picture(width: int = 3, height: int = 2, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), 7 if mode == "L" else (200, 100, 50, 255)[: len(mode)])


def row(mask: np.ndarray | Image.Image, image: Image.Image | None = None, **more: object) -> dict:
    mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    return {
        "image": image or picture(*mask.size),
        "mask": mask,
        "segmentation_mask": mask,
        "label": mask,
        **more,
    }


def ids(task: Task, mask: np.ndarray | Image.Image) -> list[list[int]]:
    image, found = task.read(row(mask))
    assert image.mode == "RGB" and found.dtype == np.uint8 and found.shape == image.size[::-1]
    return found.tolist()


@pytest.mark.parametrize(
    "border, classes, wanted",
    [
        ("ignore", ("background", "pet"), [[1, 0, IGNORE], [IGNORE, 0, 1]]),
        ("pet", ("background", "pet"), [[1, 0, 1], [1, 0, 1]]),
        ("class", ("background", "pet", "border"), [[1, 0, 2], [2, 0, 1]]),
    ],
)
def test_pet_reads_the_trimap_by_its_border_rule(border, classes, wanted):
    task = pet(border)
    assert task.classes == classes and len(set(task.colors)) == len(classes)
    assert ids(task, TRIMAP) == wanted
    assert len(task.revision) == 40 and "border" in task.note


def test_the_three_border_rules_have_three_names():
    assert len({pet(border).note for border in ("ignore", "pet", "class")}) == 3
    with pytest.raises(TaskError, match="one of ignore, pet, class, got 'void'"):
        pet("void")


def test_camvid_has_eleven_classes_and_ignores_void():
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert ids(camvid(), mask) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, IGNORE]]
    assert camvid().classes == CAMVID_CLASSES and len(set(camvid().colors)) == 11
    assert camvid().mask_column == "label"


def test_a_custom_task_reads_mask_value_i_as_class_i():
    assert ids(custom(["a", "b", "c"]), np.array([[0, 1, 2]], np.uint8)) == [[0, 1, 2]]
    ignoring = custom(["a", "b"], ignore_value=9)
    assert ids(ignoring, np.array([[0, 9, 1]], np.uint8)) == [[0, IGNORE, 1]]
    assert "9 ignored" in ignoring.note and "every pixel counts" in custom(["a", "b"]).note
    renamed = custom(["a", "b"], image_column="photo", mask_column="truth")
    rows = {"photo": picture(), "truth": Image.new("L", (3, 2), 1)}
    assert renamed.read(rows)[1].tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("number", [2, 16, 255])
def test_a_task_without_colours_gets_one_for_every_class(number):
    colors = custom([f"class {i}" for i in range(number)]).colors
    assert len(colors) == number and len(set(colors)) == min(number, 16)


def palette(values: np.ndarray, transparency: int | None = None) -> Image.Image:
    mask = Image.fromarray(values)
    mask.putpalette([channel for color in COLORS for channel in bytes.fromhex(color[1:])])
    file = io.BytesIO()
    mask.save(file, "PNG", **({} if transparency is None else {"transparency": transparency}))
    return Image.open(file)


@pytest.mark.parametrize("transparency", [None, 0, 3])
def test_a_palette_mask_is_read_by_index_not_by_colour(transparency):
    mask = palette(TRIMAP, transparency)
    assert mask.mode == "P"
    assert ids(pet("class"), mask) == ids(pet("class"), TRIMAP)


@pytest.mark.parametrize("mode", ["L", "I", "I;16"])
def test_the_depth_of_the_mask_does_not_matter(mode):
    kinds = {"L": np.uint8, "I": np.int32, "I;16": np.uint16}
    mask = Image.fromarray(TRIMAP.astype(kinds[mode]))
    assert mask.mode == mode and ids(pet("class"), mask) == ids(pet("class"), TRIMAP)


def test_a_mask_of_one_bit_is_read_as_zero_and_one():
    assert ids(custom(["a", "b"]), Image.fromarray(np.array([[False, True, True]]))) == [[0, 1, 1]]


def test_a_mask_of_floating_point_numbers_is_an_error_of_the_row():
    with pytest.raises(TaskError, match="row 3"):
        custom(["a", "b"]).read(row(Image.fromarray(np.float32([[0, 1.5]]))), "row 3")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"])
def test_pictures_of_any_mode_become_rgb(mode):
    image, _ = pet().read(row(TRIMAP, picture().convert(mode)))
    assert image.mode == "RGB" and image.size == (3, 2)


def test_an_opaque_rgba_picture_keeps_its_colours():
    image, _ = pet().read(row(TRIMAP, picture(mode="RGBA")))
    assert np.array(image).reshape(-1, 3).tolist() == [[200, 100, 50]] * 6


def test_a_transparent_picture_is_trained_on_as_it_will_be_segmented():
    from searchseg.images import read_image

    image = Image.new("RGBA", (3, 2), (200, 100, 50, 0))
    assert np.array_equal(pet().read(row(TRIMAP, image))[0], read_image(image))


def test_a_deep_grey_picture_is_trained_on_as_it_will_be_segmented():
    from searchseg.images import read_image

    image = Image.fromarray(np.full((2, 3), 30_000, np.uint16))
    assert np.array_equal(pet().read(row(TRIMAP, image))[0], read_image(image))


class Case:
    """A bad row: what is wrong with it, and what its error must name besides the row."""

    def __init__(self, broken: Callable[[], dict], *names: str) -> None:
        self.broken, self.names = broken, names


BAD = {
    "unknown value": Case(lambda: row(np.array([[4]], np.uint8)), "value 4", "[0, 1, 9]", "--ignore-value"),
    "unknown white": Case(lambda: row(np.array([[0, 255]], np.uint8)), "mask value 255", "--classes"),
    "deep value": Case(lambda: row(np.array([[0, 257]], np.uint16)), "mask value 257", "--classes"),
    "negative value": Case(lambda: row(np.array([[0, -1]], np.int32)), "mask value -1", "--classes"),
    "size": Case(lambda: row(np.zeros((2, 3), np.uint8), picture(2, 3)), "2x3", "3x2", "equal"),
    "RGB mask": Case(lambda: row(picture(3, 2)), "3 channels", "save it with one"),
    "RGBA mask": Case(lambda: row(picture(3, 2, "RGBA")), "4 channels", "save it with one"),
    "LA mask": Case(lambda: row(picture(3, 2).convert("LA")), "2 channels", "save it with one"),
    "no mask": Case(lambda: {**row(TRIMAP), "mask": None}, "'mask'", "NoneType"),
    "text": Case(lambda: {**row(TRIMAP), "image": "cat.jpg"}, "'image'", "str"),
    "bytes": Case(lambda: {**row(TRIMAP), "image": {"bytes": b"", "path": None}}, "'image'", "dict"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_a_bad_row_is_named_with_its_fault_and_cure(case):
    task = custom(["a", "b"], ignore_value=9)
    with pytest.raises(TaskError) as caught:
        task.read(case.broken(), "row 17")
    message = str(caught.value)
    assert message.startswith("row 17: ") and not [name for name in case.names if name not in message]
    assert len(message) < 300


def test_the_error_about_sizes_says_everything_once():
    with pytest.raises(TaskError) as caught:
        pet().read(row(TRIMAP, picture(2, 3)))
    assert str(caught.value).count("EXIF") == 1


def test_a_row_with_a_name_is_called_by_it():
    with pytest.raises(TaskError, match=r"row 3 \(Abyssinian_1\): mask value 4"):
        pet().read(row(np.array([[4]], np.uint8), file_name="Abyssinian_1"), "row 3")


@pytest.mark.parametrize("missing, option", [("image", "--image-column"), ("mask", "--mask-column")])
def test_a_missing_column_is_named_with_those_there_are_and_the_option(missing, option):
    columns = [name for name in ("photo", "image", "mask", "truth") if name != missing]
    with pytest.raises(TaskError) as caught:
        custom(["a", "b"]).check_columns(columns)
    assert f"no column {missing!r}" in str(caught.value) and option in str(caught.value)
    assert all(name in str(caught.value) for name in columns)
    custom(["a", "b"]).check_columns(["image", "mask", "label"])


@pytest.mark.parametrize(
    "arguments, fault",
    [
        ({"classes": ("a",)}, "2 to 255 classes"),
        ({"classes": ("a", "a")}, "different names"),
        ({"classes": tuple(map(str, range(256)))}, "2 to 255 classes"),
        ({"ids": {0: 0, 1: 2}}, "mask value 1 -> class 2"),
        ({"ids": {0: 0, 256: 1}}, "mask value 256 -> class 1"),
        ({"ids": {-1: 0}}, "mask value -1 -> class 0"),
        ({"ids": {0: -1}}, "mask value 0 -> class -1"),
        ({"colors": ("#000000",)}, "2 classes need as many colours, got 1"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused_at_birth(arguments, fault):
    with pytest.raises(TaskError, match=fault):
        Task(**{"name": "t", "classes": ("a", "b"), "ids": {0: 0, 1: 1}, **arguments})


def test_a_class_cannot_be_ignored_and_learned_at_once():
    with pytest.raises(TaskError, match="ignore"):
        custom(["a", "b", "c"], ignore_value=1)


def test_a_task_cannot_be_changed():
    task = pet()
    with pytest.raises(AttributeError):
        task.classes = ("a", "b")
    with pytest.raises(TypeError):
        task.ids[3] = 0


def test_a_task_can_be_sent_to_a_worker_process():
    task = pickle.loads(pickle.dumps(pet()))
    assert task == pet() and ids(task, TRIMAP) == ids(pet(), TRIMAP)
