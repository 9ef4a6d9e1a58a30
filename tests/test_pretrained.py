"""Proves that what is saved is what is loaded, and that every bad folder is one clear PretrainedError."""

import json
import math
import os
import pickle
import re
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from searchseg.baselines import UNet
from searchseg.config import ModelConfig
from searchseg.genotype import CELL_NAMES, OPERATION_NAMES, possible_edges
from searchseg.network import SearchNet, UShapeConfig, derive
from searchseg.pretrained import (
    PretrainedError,
    arguments_of,
    build,
    fingerprint,
    from_pretrained,
    save_pretrained,
)

NODES = 2


def random_genotype(seed: int = 0):
    numbers = torch.Generator().manual_seed(seed)
    alphas = {
        name: {f"{s}-{t}": torch.randn(7, generator=numbers).tolist() for s, t in possible_edges(NODES)}
        for name in CELL_NAMES
    }
    return derive(alphas, NODES, {"task": "pet", "seed": seed})


def config_of(model: nn.Module, **changes: object) -> ModelConfig:
    return ModelConfig(
        model.architecture,
        arguments_of(model),
        **{"classes": ("sky", "tree", "car"), "colors": ("#000000",) * 3, "image_size": (24, 32), **changes},
    )


def searchnet() -> nn.Module:
    torch.manual_seed(0)
    return SearchNet(UShapeConfig((2, 3, 4, 5), NODES, 2, 3), random_genotype())


def unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet((2, 4), 3)


def trained(model: nn.Module) -> nn.Module:
    """Weights and running statistics unlike those of a fresh network."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model.train()(3 * torch.randn(2, 3, 24, 32) + 1).square().mean().backward()
        optimizer.step()
    return model.eval()


def scores(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.randn((2, 3, 24, 32), generator=torch.Generator().manual_seed(2)))


NETWORKS = {"searchnet": searchnet, "unet": unet}
both_networks = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {name: trained(make()) for name, make in NETWORKS.items()}


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory) -> dict[str, Path]:
    """A good folder of each network, to copy and to break."""
    top = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        save_pretrained(model, top / name, config_of(model))
    return {name: top / name for name in models}


@both_networks
@pytest.mark.parametrize("as_path", [str, Path], ids=["str", "Path"])
def test_a_loaded_network_gives_identical_scores(name, as_path, models, folders):
    loaded = from_pretrained(as_path(folders[name]))
    assert torch.equal(scores(loaded), scores(models[name])) and not loaded.training
    assert loaded.config == config_of(models[name])
    assert loaded.genotype == getattr(models[name], "genotype", None)
    if name == "searchnet":
        assert loaded.genotype.search == {"task": "pet", "seed": 0}


@both_networks
def test_half_a_file_gives_close_scores_in_float32(name, models, folders, tmp_path):
    save_pretrained(models[name], tmp_path, config_of(models[name]), half=True)
    loaded = from_pretrained(tmp_path)
    assert all(t.dtype == torch.float32 for t in loaded.state_dict().values() if t.is_floating_point())
    assert torch.allclose(scores(loaded), scores(models[name]), atol=2e-2)
    assert not torch.equal(scores(loaded), scores(models[name]))
    stored = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16, torch.int64}


@both_networks
def test_a_loaded_network_can_be_saved_again(name, folders, tmp_path):
    save_pretrained(from_pretrained(folders[name]), tmp_path / "new" / "folder")
    for file in folders[name].iterdir():
        assert (tmp_path / "new" / "folder" / file.name).read_bytes() == file.read_bytes()


def test_the_folder_holds_what_the_design_says(folders):
    assert {f.name for f in folders["unet"].iterdir()} == {"config.json", "model.safetensors"}
    assert {f.name for f in folders["searchnet"].iterdir()} == {
        "config.json", "model.safetensors", "genotype.json",
    }  # fmt: skip
    document = json.loads((folders["unet"] / "config.json").read_text())
    assert document == {
        "schema": 1, "architecture": "unet", "arguments": {"widths": [2, 4], "num_classes": 3},
        "id2label": {"0": "sky", "1": "tree", "2": "car"}, "label2id": {"sky": 0, "tree": 1, "car": 2},
        "colors": ["#000000"] * 3, "image_size": [24, 32], "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225], "ignore_index": 255,
    }  # fmt: skip
    for file in folders["searchnet"].iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444, "a server may run under another account"


@both_networks
def test_memory_format_and_device_do_not_enter_the_file(name, models, folders, tmp_path):
    model = from_pretrained(folders[name]).to(memory_format=torch.channels_last)
    save_pretrained(model, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (folders[name] / WEIGHTS).read_bytes()


def test_a_network_without_config_is_not_saved(tmp_path):
    with pytest.raises(PretrainedError, match=r"does not know its classes.*ModelConfig"):
        save_pretrained(unet(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value, half", [(math.nan, False), (math.inf, False), (1e6, True)])
def test_a_network_that_is_not_finite_is_not_saved(value, half, tmp_path):
    model = unet()
    model.head.bias.data[1] = value
    with pytest.raises(PretrainedError, match=r"head\.bias is not finite"):
        save_pretrained(model, tmp_path / "new", config_of(model), half=half)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"widths": [4, 8], "num_classes": 3}},
        {"arguments": {}},
        {"architecture": "searchnet"},
        {"classes": ("a", "b"), "colors": ("#000000",) * 2},
    ],
    ids=["widths", "no arguments", "architecture", "classes"],
)
def test_a_config_that_is_not_that_of_the_network_is_not_saved(changes, tmp_path):
    model = unet()
    config = ModelConfig(**{**vars(config_of(model)), **changes})
    with pytest.raises(PretrainedError):
        save_pretrained(model, tmp_path, config)


Break = Callable[[Path], None]


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Break:
    """Break the weights: `change` alters the table of tensors in place."""

    def break_folder(folder: Path) -> None:
        table = load_file(folder / "model.safetensors")
        change(table)
        save_file(table, folder / "model.safetensors")

    return break_folder


def entries(file: str = "config.json", **changes: object) -> Break:
    """Break a JSON file: replace entries of its document, or drop those that become `...`."""

    def break_folder(folder: Path) -> None:
        document = {**json.loads((folder / file).read_text()), **changes}
        kept = {key: value for key, value in document.items() if value is not ...}
        (folder / file).write_text(json.dumps(kept))

    return break_folder


def content(file: str, change: Callable[[bytes], bytes]) -> Break:
    return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))


def header(change: Callable[[str], str]) -> Break:
    """Break the header of the weights, which is JSON behind eight bytes of length."""

    def rewrite(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        text = change(data[8 : 8 + length].decode()).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return content("model.safetensors", rewrite)


def drop(file: str) -> Break:
    return lambda folder: (folder / file).unlink()


class Touch:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def hostile_pickle(name: str) -> Break:
    def break_folder(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save({"head.bias": Touch(folder / "ran")}, folder / name)

    return break_folder


def raw_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Touch(folder / "ran"), protocol=0))


BIAS, VARIANCE, BATCHES = "head.bias", "first.0.1.running_var", "first.0.1.num_batches_tracked"
WEIGHTS = "model.safetensors"
ENTRY = '{"dtype":"F32","shape":[3],"data_offsets":[0,12]}'
MANY = ",".join(f'"{i}":{ENTRY}' for i in range(50_000))


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Break:
    return tensors(lambda table: table.update({name: change(table[name]).clone()}))


def filled(name: str, value: float, *place: int) -> Break:
    return tensors(lambda table: table[name][place].fill_(value))


def folder_in_place_of(name: str) -> Break:
    return lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


BAD_WEIGHTS = {
    "missing tensor": (tensors(lambda t: t.pop(BIAS)), "lacks 'head.bias' (1 missing, 0 extra)"),
    "extra tensor": (tensors(lambda t: t.update(spy=torch.zeros(1))), "has 'spy'"),
    "renamed tensor": (tensors(lambda t: t.update(spy=t.pop(BIAS))), "(1 missing, 1 extra)"),
    "wrong shape": (changed(BIAS, lambda b: b[:2]), "has shape [2], the network wants [3]"),
    "more dimensions": (changed(BIAS, lambda b: b[None]), "has shape [1, 3]"),
    "scalar": (changed(BIAS, lambda b: b[0]), "has shape []"),
    "integers for floats": (changed(BIAS, Tensor.long), "has type I64"),
    "floats for integers": (changed(BATCHES, Tensor.float), "has type F32"),
    "double": (changed(BIAS, Tensor.double), "has type F64"),
    "bool": (changed(BIAS, Tensor.bool), "has type BOOL"),
    "NaN": (filled(BIAS, math.nan), "head.bias holds NaN"),
    "one NaN": (filled("up.0.weight", math.nan, 1, 1, 1), "up.0.weight holds NaN"),
    "infinity": (filled(BIAS, -math.inf, 0), "holds NaN or infinite"),
    "infinity in half": (changed(BIAS, lambda b: (b + 1e6).half()), "holds NaN or infinite"),
    "NaN variance": (filled(VARIANCE, math.nan), "running_var holds NaN"),
    "negative variance": (filled(VARIANCE, -1e-3, 0), "running_var is negative"),
    "no weights": (drop(WEIGHTS), "model.safetensors is missing"),
    "a folder for weights": (folder_in_place_of(WEIGHTS), "model.safetensors is missing"),
    "empty weights": (content(WEIGHTS, lambda data: b""), "not a safetensors file"),
    "seven bytes": (content(WEIGHTS, lambda data: data[:7]), "not a safetensors file"),
    "truncated in the header": (content(WEIGHTS, lambda data: data[:100]), "not a safetensors file"),
    "truncated in the data": (content(WEIGHTS, lambda data: data[:-1]), "damaged"),
    "bytes behind the data": (content(WEIGHTS, lambda data: data + b"x"), "damaged"),
    "a pickle beside": (hostile_pickle("pytorch_model.bin"), "pytorch_model.bin is a pickle, which is never"),
    "a checkpoint beside": (hostile_pickle("checkpoint.pt"), "checkpoint.pt is a pickle"),
    "a pickle of that name": (hostile_pickle(WEIGHTS), "not a safetensors file (a pickle"),
    "an old pickle of that name": (raw_pickle, "not a safetensors file (a pickle"),
    "text for a header": (header(lambda text: "x" * len(text)), "broken header"),
    "a list for a header": (header(lambda text: "[" + "0," * 40 + "0]"), "broken header"),
    "a nested header": (header(lambda text: "[" * 100_000), "broken header"),
    "a header of 5 MB": (header(lambda text: text + " " * (5 << 20)), "not a safetensors file"),
    "a header of 10**18 bytes": (
        content(WEIGHTS, lambda data: struct.pack("<Q", 10**18) + data[8:]),
        "not a safetensors file",
    ),
    "50,000 tensors": (header(lambda text: "{" + MANY + "}"), "50000 extra"),
    "a name twice": (header(lambda text: f'{{"head.bias":{ENTRY},' + text[1:]), "a name occurs twice"),
    "an entry that is a number": (
        header(lambda text: '{"head.bias":1,' + text[1:].replace('"head.bias"', '"head.bias "')),
        "1 extra",
    ),
    "overlapping tensors": (
        header(lambda text: text.replace('"data_offsets":[', '"data_offsets":[1')),
        "damaged",
    ),
    "a shape of floats": (header(lambda text: text.replace('"shape":[3]', '"shape":[3.0]')), "damaged"),
}


@pytest.fixture
def broken(folders, tmp_path) -> Callable[[str, Break], Path]:
    def copy_and_break(name: str, break_folder: Break) -> Path:
        folder = shutil.copytree(folders[name], tmp_path / "copy")
        break_folder(folder)
        return folder

    return copy_and_break


def assert_refused(folder: Path, fault: str) -> None:
    with pytest.raises(PretrainedError) as caught:
        from_pretrained(folder)
    assert fault in str(caught.value) and len(str(caught.value)) < 500
    assert not (folder / "ran").exists(), "a pickle was loaded"


@pytest.mark.parametrize("break_folder, fault", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_bad_weights_are_refused(break_folder, fault, broken):
    assert_refused(broken("unet", break_folder), fault)


def test_a_type_that_is_no_text_is_refused(broken):
    folder = broken("unet", header(lambda text: text.replace('"dtype":"F32"', '"dtype":["F32"]')))
    assert_refused(folder, "has type")


def text(change: Callable[[bytes], bytes]) -> Break:
    return content("config.json", change)


def arguments(**values: object) -> Break:
    return entries(arguments={"widths": [2, 4], "num_classes": 3, **values})


COLORS = "colors must be one #rrggbb a class"
BAD_CONFIGS = {
    "no config": (drop("config.json"), "config.json is missing: this is not a searchseg model"),
    "a folder for config": (folder_in_place_of("config.json"), "config.json cannot be read"),
    "empty config": (text(lambda text: b""), "config.json is not JSON"),
    "config is not JSON": (text(lambda text: text[:-20]), "config.json is not JSON"),
    "config is binary": (text(lambda text: b"\xff\xfe\x00\x80"), "config.json is not JSON"),
    "config is a list": (text(lambda text: b"[]"), "no 'architecture'"),
    "config of another library": (text(lambda text: b'{"model_type": "hypernet"}'), "no 'architecture'"),
    "config is nested": (text(lambda text: b'{"a":' * 100_000), "config.json is not JSON"),
    "config of 2 MB": (text(lambda text: text + b" " * (2 << 20)), "config.json is larger than"),
    "newer schema": (entries(schema=2), "has schema 2, this version reads 1: upgrade searchseg"),
    "no schema": (entries(schema=...), "has schema None"),
    "unknown architecture": (entries(architecture="hypernet"), "'hypernet'; known: searchnet, unet"),
    "architecture is a path": (entries(architecture="../../etc/passwd"), "unknown architecture"),
    "architecture is a list": (entries(architecture=["unet"]), "architecture must be a name"),
    "architecture is nothing": (entries(architecture=None), "architecture must be a name"),
    "no arguments": (entries(arguments=...), "arguments must be a JSON dict, got None"),
    "unknown argument": (arguments(depth=5), "arguments of unet"),
    "argument left out": (entries(arguments={"num_classes": 3}), "do not belong together"),
    "another width": (arguments(widths=[2, 6]), "has shape"),
    "widths are text": (arguments(widths="24"), "widths must be"),
    "widths are a number": (arguments(widths=2), "arguments of unet"),
    "widths are zero": (arguments(widths=[2, 0]), "widths must be"),
    "2e9 parameters": (arguments(widths=[8192] * 6), "more than 2,000,000,000 parameters"),
    "num_classes against id2label": (arguments(num_classes=2), "num_classes is 2, but id2label names 3"),
    "id2label with a gap": (entries(id2label={"0": "a", "1": "b", "3": "c"}), "without gap"),
    "id2label is a list": (entries(id2label=["a", "b", "c"]), "id2label must be an object"),
    "no id2label": (entries(id2label=...), "id2label must be an object"),
    "a class that is a number": (entries(id2label={"0": "a", "1": "b", "2": 3}), "id2label must be names"),
    "too few colours": (entries(colors=["#000000"] * 2), COLORS),
    "a colour by name": (entries(colors=["#000000", "#000000", "red"]), COLORS),
    "a colour with style": (entries(colors=["#000000", "#000000", "#000000;"]), COLORS),
    "picture too large": (entries(image_size=[24, 100_000]), "[height, width] from 1 to 4096"),
    "picture of one side": (entries(image_size=[24]), "image_size must be"),
    "picture of floats": (entries(image_size=[24.0, 32]), "image_size must be"),
    "no mean": (entries(image_mean=...), "image_mean must be a JSON list, got None"),
    "mean of NaN": (entries(image_mean=[0, math.nan, 0]), "image_mean must be three finite numbers"),
    "mean of two": (entries(image_mean=[0, 0]), "image_mean must be three finite numbers"),
    "mean of text": (entries(image_mean=["0", 0, 0]), "image_mean must be three finite numbers"),
    "deviation of zero": (entries(image_std=[1, 0, 1]), "image_std must be three positive numbers"),
    "ignored value is a class": (entries(ignore_index=2), "ignore_index must be a value above the classes"),
    "ignored value is text": (entries(ignore_index="255"), "ignore_index must be"),
}


@pytest.mark.parametrize("break_folder, fault", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_bad_config_is_refused(break_folder, fault, broken):
    assert_refused(broken("unet", break_folder), fault)


def pooling(genotype: bytes) -> bytes:
    return genotype.replace(b'"operation": "skip"', b'"operation": "pool"')


THREE_NODES = {"widths": [2, 3, 4, 5], "nodes": 3, "stem_stride": 2, "num_classes": 3}
BAD_GENOTYPES = {
    "no genotype": (drop("genotype.json"), "genotype.json is missing"),
    "not JSON": (content("genotype.json", lambda text: text[:-9]), "genotype is not JSON"),
    "newer": (entries("genotype.json", schema=2), "genotype has schema 2"),
    "unknown operation": (content("genotype.json", pooling), "unknown operation 'pool'"),
    "unknown cell": (entries("genotype.json", cells={"C9": []}), "exactly the cells C1 to C8"),
    "more nodes": (entries("genotype.json", nodes=3), "needs two edges"),
    "fewer nodes than the config": (entries(arguments=THREE_NODES), "3 nodes a cell, the genotype 2"),
    "another genotype": (
        lambda folder: (folder / "genotype.json").write_text(random_genotype(5).to_json()),
        "do not belong together",
    ),
}


@pytest.mark.parametrize("break_folder, fault", BAD_GENOTYPES.values(), ids=BAD_GENOTYPES)
def test_a_bad_genotype_is_refused(break_folder, fault, broken):
    assert_refused(broken("searchnet", break_folder), fault)


@pytest.mark.parametrize(
    "old, new",
    [
        pytest.param('"num_classes": 3', '"num_classes": 2, "num_classes": 3', id="argument"),
        pytest.param('"schema": 1', '"schema": 2, "schema": 1', id="schema"),
        pytest.param('"0": "sky"', '"0": "cat", "0": "sky"', id="class"),
    ],
)
def test_an_entry_that_stands_twice_is_refused(old, new, broken):
    assert_refused(broken("unet", text(lambda t: t.replace(old.encode(), new.encode()))), "twice")


def test_two_classes_of_one_name_are_refused(broken):
    assert_refused(broken("unet", entries(id2label={"0": "a", "1": "b", "2": "a"})), "id2label")


def test_a_deviation_that_vanishes_in_float32_is_refused(broken):
    assert_refused(broken("unet", entries(image_std=[1, 1e-60, 1])), "image_std")


def test_an_error_stays_short_whatever_the_value(broken):
    assert_refused(broken("unet", entries(architecture="x" * 100_000)), "unknown architecture")


def test_a_unet_needs_no_genotype_and_ignores_one(broken, models):
    folder = broken("unet", lambda f: (f / "genotype.json").write_text("rubbish"))
    assert torch.equal(scores(from_pretrained(folder)), scores(models["unet"]))


def test_bfloat16_weights_are_accepted(broken):
    def shorten(table: dict[str, Tensor]) -> None:
        table.update({k: v.bfloat16() for k, v in table.items() if v.is_floating_point()})

    loaded = from_pretrained(broken("unet", tensors(shorten)))
    assert all(p.dtype == torch.float32 for p in loaded.parameters())


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(PretrainedError, match=r"config\.json is missing"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "source",
    ["../x", "../../etc", "/no/such/folder", "user/../name", "a/b/c", "user/name/", "./x", "user/na me",
     "https://huggingface.co/user/name", "a\0b", "-x", "x" * 200],
)  # fmt: skip
def test_what_is_neither_folder_nor_id_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PretrainedError, match="neither a folder nor a Hub id"):
        from_pretrained(source)


@pytest.mark.parametrize("source", ["no-such-folder", "user/name"])
def test_an_id_that_is_not_in_the_cache_is_refused_without_the_hub(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PretrainedError, match="not in the cache, and the Hub cannot be reached"):
        from_pretrained(source)


def test_a_file_is_not_a_folder(folders):
    with pytest.raises(PretrainedError, match="neither a folder nor a Hub id"):
        from_pretrained(folders["unet"] / "model.safetensors")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(folders, tmp_path, monkeypatch) -> Path:
    """The snapshot folder of user/name in a Hub cache, as huggingface_hub lays it out."""
    repository = tmp_path / "cache" / "models--user--name"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(folders["searchnet"], repository / "blobs")
    snapshot.mkdir(parents=True)
    for blob in (repository / "blobs").iterdir():  # snapshots are symbolic links
        (snapshot / blob.name).symlink_to(os.path.relpath(blob, snapshot))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert constants.HF_HUB_OFFLINE
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_snapshot_loads_without_the_hub(revision, cached, models):
    loaded = from_pretrained("user/name", revision=revision)
    assert torch.equal(scores(loaded), scores(models["searchnet"]))


@pytest.mark.parametrize("revision", ["f" * 40, "v2", "../main"])
def test_another_revision_is_not_taken_from_the_cache(revision, cached):
    with pytest.raises(PretrainedError, match="not in the cache"):
        from_pretrained("user/name", revision=revision)


def test_half_a_snapshot_is_refused(cached):
    (cached / "model.safetensors").unlink()
    with pytest.raises(PretrainedError, match="is missing"):
        from_pretrained("user/name")


def test_a_folder_of_that_name_goes_before_the_hub(cached, folders, tmp_path):
    shutil.copytree(folders["unet"], tmp_path / "user" / "name")
    assert from_pretrained("user/name").config.architecture == "unet"


OPENED: list[str] | None = None


def watch(event: str, arguments: tuple) -> None:
    if OPENED is not None and event in (
        "open",
        "os.listdir",
        "os.scandir",
        "subprocess.Popen",
        "socket.connect",
    ):
        OPENED.append(str(arguments[0]))


sys.addaudithook(watch)  # cannot be removed; it sleeps while OPENED is None


@pytest.mark.parametrize(
    "break_folder",
    [
        lambda folder: None,
        entries(architecture="../../../../etc/passwd"),
        entries(arguments={"widths": "/etc/passwd", "genotype": "/etc/passwd", "pretrained": "/etc/passwd"}),
        entries(arguments={"weights": "https://example.org/x", "num_classes": 3}),
        entries(auto_map={"AutoModel": "evil.Model"}, weights="/etc/passwd", genotype="/etc/passwd"),
        entries("genotype.json", search={"dataset": "/etc/passwd", "file": "/etc/passwd"}),
        entries("genotype.json", cells="/etc/passwd"),
        lambda folder: (folder / "evil.py").write_text("raise SystemExit"),
    ],
    ids=["good", "architecture", "arguments", "address", "other entries", "origin", "cells", "code"],
)
def test_nothing_outside_the_folder_is_read(break_folder, broken):
    global OPENED
    folder = broken("searchnet", break_folder)
    OPENED = []
    try:
        from_pretrained(folder)
    except PretrainedError:
        pass
    finally:
        opened, OPENED = OPENED, None
    assert any(Path(path).is_relative_to(folder) for path in opened), "the watch is asleep"
    inside = (str(folder), sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))
    assert not [path for path in opened if not path.startswith(inside) and not path.isdigit()]
    assert not [path for path in opened if Path(path).name == "evil.py"]


def test_build_gives_fresh_weights_and_carries_config_and_genotype():
    config, genotype = config_of(searchnet()), random_genotype()
    one, two = build(config, genotype), build(config, genotype)
    assert one.config is config and one.genotype is genotype
    assert not torch.equal(one.head.weight, two.head.weight)
    assert arguments_of(one) == dict(config.arguments)
    with pytest.raises(PretrainedError, match="needs genotype"):
        build(config)
    assert set(OPERATION_NAMES) >= {edge.operation for cell in one.genotype.cells.values() for edge in cell}


def test_only_our_networks_have_arguments():
    with pytest.raises(PretrainedError, match="Linear is not one of our networks"):
        arguments_of(nn.Linear(1, 1))


@both_networks
def test_a_fingerprint_belongs_to_one_network(models, folders, name, tmp_path):
    model = models[name]
    mark = fingerprint(from_pretrained(folders[name]))
    assert re.fullmatch("[0-9a-f]{12}", mark) and mark == fingerprint(from_pretrained(folders[name]))
    other = from_pretrained(folders[name])
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    save_pretrained(model, tmp_path, config_of(model, colors=("#000000", "#000000", "#ffffff")))
    assert len({mark, fingerprint(other), fingerprint(from_pretrained(tmp_path))}) == 3


def test_a_loaded_network_is_its_own(folders, tmp_path):
    shutil.copytree(folders["searchnet"], folder := tmp_path / "model")
    model = from_pretrained(folder)
    before = fingerprint(model)
    size = (folder / "model.safetensors").stat().st_size
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(size // 2)
        file.write(b"\1" * (size - size // 2))
    assert fingerprint(model) == before, "the file is written to, and the network with it"


def test_loading_needs_no_symbolic_algebra(folders):
    """torch brings sympy for some ways to leave the meta device: 0.75 s of the first picture of the page."""
    code = "import searchseg, sys; searchseg.from_pretrained(sys.argv[1]); sys.exit('sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(folders["searchnet"])]).returncode == 0
