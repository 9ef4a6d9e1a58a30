"""Save a network to a folder and load it back, from a folder or from the Hub: config.json, genotype.json
(SEARCH-Net) and model.safetensors.

A folder is untrusted: only safetensors are read, the header is bounded and compared with the network before
any tensor is loaded, and every fault is one PretrainedError.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from searchseg.baselines import BASELINES, UNetConfig
from searchseg.config import ConfigError, ModelConfig
from searchseg.download import DownloadError, find_snapshot
from searchseg.genotype import Genotype, GenotypeError, no_duplicates
from searchseg.network import SearchNet, UShapeConfig

CONFIG, GENOTYPE, WEIGHTS = "config.json", "genotype.json", "model.safetensors"
MAX_TEXT_BYTES = 1 << 20  # of config.json and genotype.json
MAX_HEADER_BYTES = 4 << 20  # of model.safetensors; a network of 20,000 tensors needs half of it
MAX_WEIGHTS_BYTES = 2 << 30  # of a model.safetensors from the Hub; less where the network is smaller
MAX_PARAMETERS = 2_000_000_000
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class PretrainedError(ValueError):
    """A folder or repository that is not a loadable model; the message names the fault and the cure."""


def _searchnet(arguments: dict[str, Any], genotype: Genotype | None) -> nn.Module:
    if genotype is None:
        raise PretrainedError("a searchnet needs genotype.json, which is missing")
    return SearchNet(UShapeConfig(**arguments), genotype)


def _baseline(name: str) -> Callable[[dict[str, Any], Genotype | None], nn.Module]:
    def construct(arguments: dict[str, Any], genotype: Genotype | None) -> nn.Module:
        if "pretrained" in arguments:  # its weights come from the folder, a config.json starts no download
            raise ValueError("unexpected argument 'pretrained'")
        return BASELINES[name](**arguments)

    return construct


ARCHITECTURES: dict[str, Callable[[dict[str, Any], Genotype | None], nn.Module]] = {
    "searchnet": _searchnet,
    **{name: _baseline(name) for name in BASELINES},
}


def build(config: ModelConfig, genotype: Genotype | None = None) -> nn.Module:
    """The network that `config` describes, with fresh weights; `model.config` and `model.genotype` are set.

    Raises PretrainedError for an unknown architecture or arguments that do not fit it.
    """
    if config.architecture not in ARCHITECTURES:
        raise PretrainedError(
            f"unknown architecture {config.architecture!r:.80}; known: {', '.join(ARCHITECTURES)}"
        )
    try:
        model = ARCHITECTURES[config.architecture](dict(config.arguments), genotype)
    except (TypeError, ValueError) as error:
        raise PretrainedError(f"config.json: arguments of {config.architecture}: {error}") from error
    classes = config.arguments.get("num_classes", 2)
    if classes != len(config.classes):
        raise PretrainedError(
            f"config.json: num_classes is {classes}, but id2label names {len(config.classes)} classes"
        )
    model.config, model.genotype = config, genotype  # type: ignore[assignment]
    return model


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], config: ModelConfig | None = None, half: bool = False
) -> None:
    """Write config.json, model.safetensors and, for a SEARCH-Net, genotype.json to `folder` (made if
    missing).

    `config` is needed for a network that was built by hand, since it does not know its classes and picture
    size; `half` stores floating-point tensors as float16. Raises PretrainedError when a weight is not finite
    or `config` is missing.
    """
    config = config or getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise PretrainedError(
            "this network does not know its classes and picture size: save_pretrained(model, folder, "
            "config=searchseg.ModelConfig(architecture, arguments, classes, colors, image_size))"
        )
    genotype = getattr(model, "genotype", None)
    with torch.device("meta"):
        wanted = build(config, genotype).state_dict()
    if {n: t.shape for n, t in wanted.items()} != {n: t.shape for n, t in model.state_dict().items()}:
        raise PretrainedError(
            f"the config describes another network than this {type(model).__name__}: not saved"
        )
    tensors = {name: _stored(name, tensor, half) for name, tensor in model.state_dict().items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    os.chmod(
        folder / WEIGHTS, 0o644
    )  # safetensors leaves 0600, unreadable for a server under another account
    if isinstance(genotype, Genotype):
        (folder / GENOTYPE).write_text(genotype.to_json())
    (folder / CONFIG).write_text(config.to_json())


def from_pretrained(
    source: str | os.PathLike[str],
    revision: str | None = None,
    token: str | None = None,
    device: str | torch.device = "cpu",
    local_files_only: bool = False,
) -> nn.Module:
    """Load a network, in eval mode, from a folder or a Hub id ("user/name").

    `revision` is a branch, tag or commit of the Hub repository, `token` opens a private one (by default that
    of `hf auth login`), and `local_files_only` takes only what is in the cache. All files come from one
    commit; a cached commit given by its 40 digits makes no request. `model.config` is the ModelConfig,
    `model.genotype` the Genotype or None, `model.commit` the commit or, for a folder, None. Weights become
    float32 whatever they were stored as. Raises PretrainedError naming the fault and the cure.
    """
    if os.path.isdir(source):
        model = _load(Path(source), lambda name, most_bytes: None)
        model.commit = None  # type: ignore[assignment]
        return model.to(device)
    try:
        snapshot = find_snapshot(os.fspath(source), revision, token, local_files_only, CONFIG)
        model = _load(snapshot.folder, snapshot.fetch)
    except DownloadError as error:
        raise PretrainedError(str(error)) from error
    except PretrainedError as error:
        raise PretrainedError(
            f"{error} ({source} at {snapshot.commit}; if only the cache is damaged, delete {snapshot.folder})"
        ) from error
    snapshot.remember()
    model.commit = snapshot.commit  # type: ignore[assignment]
    return model.to(device)


def _load(folder: Path, fetch: Callable[[str, int], None]) -> nn.Module:
    """The network in `folder`; `fetch(name, most_bytes)` brings each file there just before it is read."""
    try:
        fetch(CONFIG, MAX_TEXT_BYTES)
        config, genotype = ModelConfig.from_json(_text(folder, CONFIG)), None
        if config.architecture == "searchnet":
            fetch(GENOTYPE, MAX_TEXT_BYTES)
            genotype = Genotype.from_json(_text(folder, GENOTYPE))
    except (ConfigError, GenotypeError) as error:
        raise PretrainedError(str(error)) from error
    with torch.device(
        "meta"
    ):  # shapes first: nothing large is allocated before the file has been compared with them
        model = build(config, genotype)
    fetch(WEIGHTS, _most_bytes(model))
    tensors = _read_weights(folder, model)
    if {name for name, _ in model.named_buffers()} <= set(model.state_dict()):
        # assigned, as to_empty() would import sympy, most of a second of the page's start
        model.load_state_dict(tensors, strict=True, assign=True)
    else:  # some encoders compute what they do not save; that takes a network built for good
        model = build(config, genotype)
        model.load_state_dict(tensors, strict=True)
    return model.eval()


def fingerprint(model: nn.Module) -> str:
    """Twelve hex digits of the sha256 of config, genotype and weights: one network has one, whether it came
    from a folder or from the Hub, and any other network another one."""
    genotype, digest = getattr(model, "genotype", None), hashlib.sha256()
    digest.update(model.config.to_json().encode())  # type: ignore[union-attr, operator]
    digest.update(genotype.id.encode() if isinstance(genotype, Genotype) else b"")
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def arguments_of(model: nn.Module) -> dict[str, Any]:
    """The constructor arguments of one of our networks, as config.json holds them."""
    arguments = getattr(model, "arguments", None)
    if isinstance(arguments, (UShapeConfig, UNetConfig)):
        return {**asdict(arguments), "widths": list(arguments.widths)}
    if isinstance(arguments, dict) and getattr(model, "architecture", None) in BASELINES:
        return dict(arguments)
    raise PretrainedError(f"{type(model).__name__} is not one of our networks")


def _stored(name: str, tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.half() if half else tensor
    if not tensor.isfinite().all():
        raise PretrainedError(f"{name} is not finite{' in float16' if half else ''}: not saved")
    return tensor


def _text(folder: Path, name: str) -> bytes:
    try:
        with open(folder / name, "rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError as error:
        raise PretrainedError(f"{name} is missing: this is not a searchseg model") from error
    except OSError as error:
        raise PretrainedError(f"{name} cannot be read: {error.strerror}") from error
    if len(content) > MAX_TEXT_BYTES:
        raise PretrainedError(f"{name} is larger than {MAX_TEXT_BYTES} bytes: this is not a searchseg model")
    return content


def _most_bytes(model: nn.Module) -> int:
    """The largest file that can hold the weights of this network: all in float32, with the longest header."""
    wanted = model.state_dict().values()
    if sum(tensor.numel() for tensor in wanted) > MAX_PARAMETERS:
        raise PretrainedError(f"config.json asks for more than {MAX_PARAMETERS:,} parameters: refused")
    tensors = sum(tensor.numel() * tensor.element_size() for tensor in wanted)
    return min(MAX_WEIGHTS_BYTES, 8 + MAX_HEADER_BYTES + tensors)


def _read_weights(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    path, wanted = folder / WEIGHTS, model.state_dict()
    if not path.is_file():
        others = sorted(
            p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
        )
        hint = f"; {others[0]} is a pickle, which is never loaded" if others else ""
        raise PretrainedError(f"{WEIGHTS} is missing{hint}: save the model with searchseg.save_pretrained")
    header = _read_header(path)
    _compare(header, wanted)
    try:
        stored = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise PretrainedError(f"{WEIGHTS} is damaged: {error}; get it again") from error
    # copies, as the file may change
    tensors = {name: tensor.to(wanted[name].dtype, copy=True) for name, tensor in stored.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise PretrainedError(f"{WEIGHTS}: {name} holds NaN or infinite values")
        if name.endswith("running_var") and (tensor < 0).any():
            raise PretrainedError(f"{WEIGHTS}: {name} is negative, which no variance can be")
    return tensors


def _read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: name -> dtype, shape, offsets. Bounded before it is parsed."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
            raise PretrainedError(f"{WEIGHTS} is not a safetensors file (a pickle, or a broken download?)")
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise PretrainedError(f"{WEIGHTS} has a broken header: {error}") from error
    if not isinstance(header, dict):
        raise PretrainedError(f"{WEIGHTS} has a broken header: not an object")
    header.pop("__metadata__", None)
    return header


def _compare(header: dict[str, Any], wanted: dict[str, Tensor]) -> None:
    missing, extra = sorted(set(wanted) - set(header)), sorted(set(header) - set(wanted))
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which the network does not"
        raise PretrainedError(
            f"{WEIGHTS} {what} ({len(missing)} missing, {len(extra)} extra): "
            "weights and config.json do not belong together"
        )
    for name, tensor in wanted.items():
        entry = header[name]
        shape, dtype = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, dict) else (None, None)
        if shape != list(tensor.shape):
            raise PretrainedError(
                f"{WEIGHTS}: {name} has shape {shape}, the network wants {list(tensor.shape)}"
            )
        if (
            not isinstance(dtype, str)
            or (dtype in FLOATS) != tensor.is_floating_point()
            or (dtype not in FLOATS and dtype != "I64")
        ):
            raise PretrainedError(f"{WEIGHTS}: {name} has type {dtype}, the network wants {tensor.dtype}")
