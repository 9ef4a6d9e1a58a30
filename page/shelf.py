"""The models that the page knows: shipped with it, trained on it, and loaded from the Hub."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from PIL import Image

from hub.metadata import is_hub_id
from searchseg import Genotype, ModelConfig, PretrainedError, Segmentation, Segmenter, from_pretrained
from searchseg.baselines import TITLES
from searchseg.cost import macs, parameters
from searchseg.download import DownloadError, find_snapshot
from searchseg.pretrained import CONFIG, build

OPTIONAL_FILES = ("genotype.json", "metrics.json", "search/genotype.jsonl", "search/alpha.jsonl")
LARGEST_FILE = 64 * 2**20  # of a search's record; a longer one is left out
SEGMENTERS = 8  # networks kept in memory
MOST_HUB_MODELS = 20
# of a Hub model: its files, its input, and a bound on what runs (a UNet of 31 M at 512 px has 8e12)
MOST_PARAMETERS, MOST_INPUT_PIXELS, MOST_WORK = 150_000_000, 1024 * 1024, 2e13


@dataclass(frozen=True, eq=False)
class Model:
    """A model and what the page says about it; its weights are loaded when a picture comes.

    name: what it is called from outside; source: "shipped", "trained here" or "Hub"; commit: of a Hub
    repository, all 40 digits; folder: where its files lie.
    """

    name: str
    source: str
    folder: Path
    config: ModelConfig
    genotype: Genotype | None
    parameters: int
    miou: float | None
    task: str | None = None
    commit: str | None = None

    @classmethod
    def read(cls, folder: Path, name: str, source: str, commit: str | None = None) -> Model:
        """Raises OSError or ValueError (ConfigError, GenotypeError, PretrainedError) for a damaged folder."""
        config, genotype = ModelConfig.from_json((folder / "config.json").read_bytes()), None
        if config.architecture == "searchnet":
            genotype = Genotype.from_json((folder / "genotype.json").read_bytes())
        with torch.device("meta"):
            count = parameters(build(config, genotype))
        metrics = read_metrics(folder)
        task = metrics.get("protocol", {}).get("task") if isinstance(metrics.get("protocol"), dict) else None
        if source == "Hub":
            check_bounds(config, count)
        return cls(
            name, source, folder, config, genotype, count, _number(metrics.get("miou")),
            task if isinstance(task, str) else None, commit,
        )  # fmt: skip

    @property
    def title(self) -> str:
        """Such as "SEARCH-Net, pet lite" or "SEARCH-Net, user/name at 0123456"."""
        architecture = self.config.architecture
        called = self.name.removeprefix(architecture).replace("-", " ").strip()
        if self.commit:
            called = f"{self.name.partition('@')[0]} at {self.commit[:7]}"
        return ", ".join(filter(None, (TITLES.get(architecture, architecture), called)))

    @property
    def label(self) -> str:
        """Such as "SEARCH-Net, pet lite – 1.2 M parameters, mIoU 0.87"."""
        score = "" if self.miou is None else f", mIoU {self.miou:.2f}"
        return f"{self.title} – {self.parameters / 1e6:.1f} M parameters{score}"

    @functools.cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one picture at the size that the network sees."""
        with torch.device("meta"):
            network = build(self.config, self.genotype)
        return macs(network, (1, 3, *self.config.image_size))


def check_bounds(config: ModelConfig, count: int) -> None:
    """Refuse a stranger's model that one picture of would take the whole machine; raises PretrainedError."""
    pixels = config.image_size[0] * config.image_size[1]
    if count > MOST_PARAMETERS or pixels > MOST_INPUT_PIXELS or count * pixels > MOST_WORK:
        size = " x ".join(map(str, config.image_size))
        raise PretrainedError(
            f"{count:,} parameters on pictures of {size} are more than this page runs; load it with searchseg"
        )


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json of a model; empty where there is none that can be read."""
    try:
        metrics = json.loads((folder / "metrics.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return metrics if isinstance(metrics, dict) else {}


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if usable else None


@dataclass(frozen=True)
class Loaded:
    """A network in memory, and how long it takes for a picture of its own size on this machine."""

    segmenter: Segmenter
    seconds: float


@dataclass
class Shelf:
    """Every model by its name, and the networks that are in memory.

    Names that come from outside are compared with those on the shelf, never used as a path. `trained`: a
    folder whose sub-folders are runs with a finished `model/`.
    """

    shipped: Path
    trained: Path | None = None
    _models: dict[str, Model] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # of every network that was run here
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _loading: dict[str, threading.Lock] = field(default_factory=dict)  # one for each model

    def __post_init__(self) -> None:
        self._loaded = functools.lru_cache(maxsize=SEGMENTERS)(self._load)
        # at most 160 MB each; downloads and another model on the same picture need no second run
        self.segmentation = functools.lru_cache(maxsize=4)(self._segmentation)
        found = [(path.parent, path.parent.name) for path in sorted(self.shipped.glob("*/config.json"))]
        models = [model for place, name in found if (model := self._read(place, name, "shipped"))]
        ranked = sorted(models, key=lambda model: -1 if model.miou is None else model.miou, reverse=True)
        self._models |= {model.name: model for model in ranked}
        self.refresh()

    def __len__(self) -> int:
        return len(self._models)

    @property
    def models(self) -> list[Model]:
        """All of them: the shipped ones first, best mIoU first, then the others as they came."""
        with self._lock:
            return list(self._models.values())

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(label, name) of every model, as a dropdown wants them."""
        return [(model.label, model.name) for model in self.models]

    @property
    def default(self) -> Model:
        """The best SEARCH-Net, else the best model."""
        return next((model for model in self.models if model.genotype is not None), self.models[0])

    def refresh(self) -> None:
        """Put what was trained here since the last look on the shelf."""
        for path in sorted(self.trained.glob("*/model/README.md")) if self.trained else []:
            name = path.parent.parent.name
            name = f"{name} (trained here)" if name in self._shipped_names() else name
            with self._lock:
                if name not in self._models and (m := self._read(path.parent, name, "trained here")):
                    self._models[name] = m

    def _shipped_names(self) -> set[str]:
        return {model.name for model in self.models if model.source == "shipped"}

    def get(self, name: str) -> Model:
        """The model of that name; KeyError, with the names there are, for any other."""
        with self._lock:
            if isinstance(name, str) and name in self._models:
                return self._models[name]
            raise KeyError(f"There is no such model. Known: {', '.join(self._models)}.")

    def add(
        self, repo_id: str, revision: str | None = None, token: str | Literal[False] | None = None
    ) -> Model:
        """Load a Hub model and put it on the shelf as "user/name@commit"; PretrainedError says why not.

        `token` False asks without any token, also without that of this machine.
        """
        if sum(model.source == "Hub" for model in self.models) >= MOST_HUB_MODELS:
            raise PretrainedError(
                f"{MOST_HUB_MODELS} models of the Hub are loaded, which is all this page takes"
            )
        if not is_hub_id(repo_id.strip()) or Path(repo_id.strip()).exists():  # no path of this server
            raise PretrainedError(f"{repo_id.strip()!r:.120} is neither here nor a Hub id such as user/name")
        repo_id = repo_id.strip()
        try:
            commit = find_snapshot(repo_id, revision, token, name=CONFIG).commit
        except DownloadError as error:
            raise PretrainedError(str(error)) from error
        # what is small first: a network beyond the bounds is refused before its weights are fetched
        folder = Path(hf_hub_download(repo_id, CONFIG, revision=commit, token=token)).parent
        for name in OPTIONAL_FILES:
            _fetch_optional(repo_id, name, commit, token)
        model = Model.read(folder, f"{repo_id}@{commit[:7]}", "Hub", commit)
        from_pretrained(repo_id, revision=commit, token=token)  # checks every tensor, or says why not
        return self._put(model)

    def find_cached(self) -> list[str]:
        """Put the searchseg models of the Hub cache on the shelf, without a request; returns their names."""
        found = []
        for repo_id, commit, folder in _cached():
            model = self._read(folder, f"{repo_id}@{commit[:7]}", "Hub", commit)
            if len(found) >= MOST_HUB_MODELS:
                break
            if model and (folder / "model.safetensors").exists():
                found.append(self._put(model).name)
        return found

    def _put(self, model: Model) -> Model:
        with self._lock:
            return self._models.setdefault(model.name, model)

    def load(self, name: str) -> Loaded:
        """The network of a model; read once, also when several pictures ask for it at the same time."""
        with self._lock:
            loading = self._loading.setdefault(name, threading.Lock())
        with loading:
            return self._loaded(name)

    def warm(self) -> None:
        """Load the default network before anybody asks; a damaged one says so to who asks."""
        with contextlib.suppress(PretrainedError, OSError):
            self.load(self.default.name)

    def _load(self, name: str) -> Loaded:
        """The network of a model; its first two runs, several times slower, lie behind it: kernels are put in
        order in the first, calls recorded in the second."""
        segmenter = Segmenter.from_pretrained(self.get(name).folder)
        height, width = segmenter.config.image_size
        blank = Image.new("RGB", (width, height))
        for _ in range(2):
            segmenter(blank)
        began = time.perf_counter()
        segmenter(blank)
        self.seconds[name] = time.perf_counter() - began
        return Loaded(segmenter, self.seconds[name])

    def _segmentation(self, name: str, picture: str) -> Segmentation:
        """A picture segmented; the path of an upload names its contents (by a hash)."""
        return self.load(name).segmenter(picture)

    @staticmethod
    def _read(folder: Path, name: str, source: str, commit: str | None = None) -> Model | None:
        try:
            return Model.read(folder, name, source, commit)
        except (OSError, ValueError, RecursionError, RuntimeError) as error:
            print(f"{name} is left out: {error}")
            return None


def _cached() -> Iterable[tuple[str, str, Path]]:
    """(repository, commit, folder) of every snapshot in the Hub cache that has a config.json of ours."""
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted((r for r in repositories if r.repo_type == "model"), key=lambda r: r.repo_id):
        for revision in repository.revisions:
            config = revision.snapshot_path / "config.json"
            try:
                ModelConfig.from_json(config.read_bytes())
            except (OSError, ValueError):
                continue  # of another library
            yield repository.repo_id, revision.commit_hash, revision.snapshot_path


def _fetch_optional(repo_id: str, name: str, commit: str, token: str | Literal[False] | None) -> None:
    """Bring a file that a model may have or not into the cache; the page does without it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        info = HfApi(token=token).get_paths_info(repo_id, name, revision=commit)
        if info and getattr(info[0], "size", LARGEST_FILE + 1) <= LARGEST_FILE:
            hf_hub_download(repo_id, name, revision=commit, token=token)
    except (HTTPError, OSError, ValueError) as error:
        print(f"{name} of {repo_id} is left out: {type(error).__name__}")
