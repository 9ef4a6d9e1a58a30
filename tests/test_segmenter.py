"""Proves that a mask has its picture's size and its best classes, whatever the picture's form and shape."""

import io
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from searchseg import segmenter as module
from searchseg.baselines import UNet
from searchseg.config import ModelConfig
from searchseg.images import ImageError
from searchseg.pretrained import build, save_pretrained
from searchseg.segmenter import Segmentation, Segmenter, class_ids, png_options

CLASSES, COLORS = ("background", "cat", "dog"), ("#303030", "#ff8000", "#0080ff")
SIZES = [(1, 1), (53, 37), (500, 1), (1, 500), (32, 24), (200, 3)]  # width, height


def config(**changes: object) -> ModelConfig:
    settings = {"classes": CLASSES, "colors": COLORS, "image_size": (24, 32), **changes}
    return ModelConfig("unet", {"widths": [2, 4], "num_classes": 3}, **settings)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    model = build(config())
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1  # statistics of the last batch: fresh ones leave the scores of all pixels alike
    model.train()(torch.randn(4, 3, 24, 32))
    nn.init.zeros_(model.head.bias)
    return Segmenter(model, "cpu")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_mask_as_png_is_the_same_ids_in_fewer_bytes():
    ids = Image.fromarray(np.array(noise(800, 600).convert("L")) // 64)
    coloured = ids.convert("P")
    coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    photo = noise(300, 200)
    for picture in (ids, coloured, photo, photo.convert("RGBA")):
        small = encoded(picture, **png_options(picture))
        assert np.array_equal(Image.open(io.BytesIO(small)), picture)
        if picture.mode.startswith("RGB"):
            assert small == encoded(picture, compress_level=1) != encoded(picture)
        else:
            assert len(small) < min(len(encoded(picture)), len(encoded(picture, compress_level=1)))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_mask_has_exactly_the_size_of_the_picture(segmenter, size):
    result = segmenter(noise(*size))
    assert result.mask.shape == size[::-1] and result.mask.dtype == np.uint8
    assert result.mask.max() < 3 and result.image.size == size
    assert result.classes == CLASSES and result.colors == COLORS and 0 < result.seconds < 60
    for picture in (result.overlay(), result.cutout(), result.mask_image(), result.colored()):
        assert picture.size == size


def test_every_form_of_a_picture_gives_the_same_mask(segmenter, tmp_path):
    picture = noise(53, 37)
    path = tmp_path / "picture.png"
    picture.save(path)
    wanted = segmenter(picture)
    assert len(np.unique(wanted.mask)) > 1
    for form in (
        str(path),
        path,
        path.read_bytes(),
        np.array(picture),
        Image.open(path),
        picture.convert("RGBA"),
    ):
        result = segmenter(form)
        assert np.array_equal(result.mask, wanted.mask)
        assert result.image.mode == "RGB" and np.array_equal(result.image, picture)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_first(segmenter, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = segmenter(encoded(noise(53, 37), "JPEG", exif=exif))
    size = (53, 37) if orientation < 5 else (37, 53)
    assert result.image.size == size and result.mask.shape == size[::-1]
    assert np.array_equal(segmenter(result.image).mask, result.mask)


class Brightness(nn.Module):
    """Class 1 where the picture is bright, class 2 where it is red, else class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.config = config(image_mean=(0, 0, 0), image_std=(1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        assert not self.training and image.shape[1:] == (3, 24, 32)
        grey = image.amin(1)
        return torch.stack([torch.full_like(grey, 0.3), grey, (image[:, 0] - grey) * 0.9], 1)


@pytest.mark.parametrize("size", [(64, 48), (53, 37), (300, 20)], ids=str)
def test_classes_stand_where_the_picture_shows_them(size):
    width, height = size
    picture = Image.new("RGB", size, "black")
    picture.paste("white", (0, 0, width // 2, height // 2))
    picture.paste("red", (width // 2, 0, width, height // 2))
    mask = Segmenter(Brightness().train(), "cpu")(picture).mask
    corners = [mask[y, x] for y in (0, -1) for x in (0, -1)]
    assert corners == [1, 2, 0, 0]
    wanted = np.zeros((height, width))
    wanted[: height // 2, : width // 2], wanted[: height // 2, width // 2 :] = 1, 2
    assert (mask == wanted).mean() > 0.85


def test_a_picture_is_resized_and_normalised_by_the_numbers_of_the_config():
    some = config(image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.25, 2))
    tensor = some.tensor(Image.new("RGB", (301, 7), (255, 51, 102)))
    assert tensor.shape == (3, 24, 32) and tensor.dtype == torch.float32
    wanted = torch.tensor([(1 - 0.1) / 0.5, 0, (0.4 - 0.3) / 2])
    assert torch.allclose(tensor, wanted.view(3, 1, 1).expand_as(tensor), atol=1e-6)
    batch = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
    assert torch.equal(some.normalise(batch)[1], some.normalise(batch[1]))


def check_against_the_whole(mask: np.ndarray, scores: Tensor) -> None:
    """`mask` is the argmax of `scores` upsampled at once, but for pixels where two classes tie."""
    whole = F.interpolate(scores[None], size=mask.shape, mode="bilinear", align_corners=False)[0]
    chosen = torch.from_numpy(mask).long()
    assert (whole.argmax(0) == chosen).float().mean() >= 0.999
    lost = whole.amax(0) - whole.gather(0, chosen[None])[0]
    assert lost.max() < 1e-4


@pytest.mark.parametrize("band_values", [1, 700, 4_000_000])
@pytest.mark.parametrize(
    "size", [(37, 53), (7, 5), (1, 500), (500, 1), (1, 1), (12, 16), (11, 16), (12, 17), (96, 128)], ids=str
)
def test_bands_give_the_classes_of_the_whole(size, band_values, monkeypatch):
    monkeypatch.setattr(module, "BAND_VALUES", band_values)
    for classes, height, width in ((3, 12, 16), (2, 12, 16), (2, 1, 1), (11, 5, 2)):
        scores = torch.randn((classes, height, width), generator=torch.Generator().manual_seed(classes))
        mask = class_ids(scores, *size)
        assert mask.shape == size and mask.dtype == np.uint8
        check_against_the_whole(mask, scores)


@pytest.mark.parametrize("height, bound, bands", [(48, 64 * 5, 10), (5, 64 * 6, 3)], ids=["up", "down"])
def test_a_band_holds_no_more_than_its_bound(monkeypatch, height, bound, bands):
    monkeypatch.setattr(module, "BAND_VALUES", bound)
    seen, best = [], module._best

    def count(wide: Tensor, *arguments: Tensor) -> None:
        seen.append(max(wide[0].numel(), arguments[-1].numel()))  # rows of scores, rows of the mask
        best(wide, *arguments)

    monkeypatch.setattr(module, "_best", count)
    class_ids(torch.randn(3, 12, 16), height, 64)
    assert len(seen) == bands and max(seen) <= bound


@pytest.mark.parametrize("classes", [2, 255])
def test_every_class_number_fits_the_mask(classes):
    scores = torch.eye(classes)[:, None, :]
    assert class_ids(scores, 1, classes).tolist() == [list(range(classes))]


@pytest.mark.parametrize("size", [(53, 37), (500, 1)], ids=str)
def test_a_segmenter_gives_the_argmax_of_its_network(segmenter, size):
    picture = noise(*size)
    with torch.no_grad():
        scores = segmenter.model(segmenter.config.tensor(picture)[None])[0]
    check_against_the_whole(segmenter(picture).mask, scores)


def test_a_segmenter_does_not_learn_from_its_pictures(segmenter):
    before = {name: tensor.clone() for name, tensor in segmenter.model.state_dict().items()}
    one, _, again = (segmenter(noise(53, 37, seed)).mask for seed in (1, 2, 1))
    assert np.array_equal(one, again) and not segmenter.model.training
    assert all(torch.equal(before[name], t) for name, t in segmenter.model.state_dict().items())


def test_a_loaded_segmenter_gives_the_same_masks(segmenter, tmp_path):
    save_pretrained(segmenter.model, tmp_path)
    loaded = Segmenter.from_pretrained(tmp_path, device="cpu")
    assert np.array_equal(loaded(noise(53, 37)).mask, segmenter(noise(53, 37)).mask)
    assert loaded.device.type == "cpu" and loaded.config == segmenter.config


def test_a_network_without_config_is_no_segmenter():
    with pytest.raises(ValueError, match=r"ModelConfig as model\.config"):
        Segmenter(UNet((2, 4), 3), "cpu")


RUBBISH = {
    "text": b"this is no picture",
    "nothing": b"",
    "half a picture": encoded(noise(53, 37))[:300],
    "no file": "no/such/file.png",
    "a folder": ".",
    "an address": "https://example.org/cat.png",
    "grey array": np.zeros((4, 4), np.uint8),
    "float array": np.zeros((4, 4, 3)),
    "empty array": np.zeros((0, 4, 3), np.uint8),
    "a number": 7,
    "none": None,
    "a tensor": torch.zeros(3, 4, 4),
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_is_an_image_error(segmenter, rubbish):
    with pytest.raises(ImageError):
        segmenter(rubbish)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_whole_only_for_its_picture(segmenter, tmp_path, monkeypatch, orientation):
    exif, path = Image.Exif(), tmp_path / "photo.jpg"
    exif[0x0112] = orientation
    noise(640, 480).save(path, quality=90, exif=exif)
    read, whole = [], module.read_image

    def noted(source):
        read.append(source)
        return whole(source)

    monkeypatch.setattr(module, "read_image", noted)
    for source in (path, str(path), path.read_bytes()):
        read.clear()
        result = segmenter(source)
        assert result.mask.shape == ((480, 640) if orientation == 1 else (640, 480))
        assert sum(result.shares.values()) == pytest.approx(1) and result.to_json() and not read
        exact = segmenter(whole(source))
        assert (result.mask == exact.mask).mean() > 0.98 and len(set(exact.mask.ravel())) > 1
        read.clear()
        path.unlink(missing_ok=True)  # what was read once is not read again
        assert np.array_equal(result.image, exact.image) and np.array_equal(result.overlay(0), exact.image)
        assert len(read) == 1, "decoded again for the overlay"
        if not isinstance(source, bytes):
            noise(640, 480).save(path, quality=90, exif=exif)


def test_a_picture_that_is_not_much_larger_than_the_input_is_decoded_once(segmenter, monkeypatch):
    small = encoded(noise(127, 127), "JPEG")  # twice 64, where the input is 24x32, would be 128
    png = encoded(noise(640, 480))
    for data in (small, png):
        exact = segmenter(module.read_image(data))
        with monkeypatch.context() as patch:
            patch.setattr(module, "read_image", lambda source: pytest.fail("decoded twice"))
            result = segmenter(data)
        assert np.array_equal(result.mask, exact.mask) and np.array_equal(result.image, exact.image)


MASK = np.array([[0, 0, 1, 2], [0, 1, 1, 2], [0, 0, 0, 0]], np.uint8)


@pytest.fixture
def drawn() -> Segmentation:
    """A segmentation by hand: 7 pixels background, 3 cat, 2 dog."""
    return Segmentation(noise(4, 3), MASK, CLASSES, COLORS, 0.123456)


def test_shares_are_parts_of_the_picture(drawn, segmenter):
    assert drawn.shares == pytest.approx({"background": 7 / 12, "cat": 3 / 12, "dog": 2 / 12})
    assert list(drawn.shares) == list(CLASSES)
    for size in SIZES:
        assert sum(segmenter(noise(*size)).shares.values()) == pytest.approx(1)
    alone = Segmentation(noise(4, 3), np.zeros((3, 4), np.uint8), CLASSES, COLORS, 0)
    assert alone.shares == {"background": 1, "cat": 0, "dog": 0}


def test_an_overlay_runs_from_the_picture_to_the_colours(drawn):
    colours = np.array([(48, 48, 48), (255, 128, 0), (0, 128, 255)], np.uint8)[MASK]
    assert np.array_equal(drawn.overlay(0), drawn.image)
    assert np.array_equal(drawn.overlay(1), colours) and np.array_equal(drawn.colored(), colours)
    between = (np.array(drawn.image, np.float32) + colours) / 2
    assert np.abs(np.array(drawn.overlay(), np.float32) - between).max() <= 1
    assert drawn.overlay().mode == "RGB"


@pytest.mark.parametrize("opacity", [-0.01, 1.01, math.nan, math.inf])
def test_an_opacity_outside_of_0_to_1_is_refused(drawn, opacity):
    with pytest.raises(ValueError, match="opacity must lie between 0 and 1, got"):
        drawn.overlay(opacity)


@pytest.mark.parametrize(
    "classes, opaque",
    [(None, (1, 2)), (["dog"], (2,)), (("background", "cat"), (0, 1)), ([], ()), (CLASSES, (0, 1, 2))],
)
def test_a_cutout_is_opaque_in_the_wanted_classes_only(drawn, classes, opaque):
    cutout = drawn.cutout(classes)
    assert cutout.mode == "RGBA"
    assert np.array_equal(np.array(cutout)[..., 3], np.where(np.isin(MASK, opaque), 255, 0))
    assert np.array_equal(np.array(cutout)[..., :3], drawn.image)
    again = Image.open(io.BytesIO(encoded(cutout)))
    assert np.array_equal(again, cutout)


@pytest.mark.parametrize("classes", [["bird"], ["cat", "bird"], "cat"])
def test_a_cutout_of_an_unknown_class_is_refused(drawn, classes):
    with pytest.raises(ValueError, match=r"no class .*; the classes are background, cat, dog"):
        drawn.cutout(classes)


def test_a_mask_survives_a_png(drawn, segmenter):
    for result in (drawn, segmenter(noise(53, 37))):
        image = Image.open(io.BytesIO(encoded(result.mask_image())))
        assert image.mode == "L" and np.array_equal(image, result.mask)


def test_json_holds_size_classes_and_shares(drawn):
    assert json.loads(drawn.to_json()) == {
        "height": 3,
        "width": 4,
        "classes": [
            {"id": 0, "name": "background", "color": "#303030", "share": 0.583333},
            {"id": 1, "name": "cat", "color": "#ff8000", "share": 0.25},
            {"id": 2, "name": "dog", "color": "#0080ff", "share": 0.166667},
        ],
        "seconds": 0.1235,
    }


def test_two_segmentations_can_be_compared():
    one, two = (Segmentation(noise(4, 3), MASK.copy(), CLASSES, COLORS, 0) for _ in range(2))
    assert one in [two, one]
