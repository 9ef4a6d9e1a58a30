"""Put the page on Hugging Face as a Gradio Space, with the shipped models or with one from the Hub.

The Space gets app.py, searchseg, hub, requirements.txt, the models, and a README whose front matter tells
the Hub how to run it. A model from the Hub is copied at its present commit, so that the Space starts
without asking.

examples:
  python -m hub.deploy me/pets
  python -m hub.deploy me/leaves --model me/searchnet-leaves --private
  python -m hub.deploy me/workshop --training --private   with the tab that searches, for those who see it
  python -m hub.deploy me/pets --dry-run FOLDER      writes the Space into FOLDER instead
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HTTPError
from torch import nn

import searchseg
from hub.metadata import is_hub_id
from hub.remote import PublishError, bounded_waits, explained, patiently
from searchseg.pretrained import CONFIG, GENOTYPE, WEIGHTS, PretrainedError

ROOT = Path(__file__).resolve().parent.parent
CODE = ("app.py", "requirements.txt", "LICENSE")
PACKAGES = ("searchseg", "hub", "page")
TRAINING = "training"
SWITCH = "Training stays off until the Space's settings have the variable SEARCHSEG_ALLOW_TRAINING = 1."
# what the page shows of a model besides running it: its scores, and the search as a film
RECORDS = ("metrics.json", "search/genotype.jsonl", "search/alpha.jsonl")
MODEL_FILES = ("config.json", "genotype.json", "model.safetensors", "README.md", *RECORDS)


def lay_out(
    folder: Path, title: str, model: str | None = None, token: str | None = None, training: bool = False
) -> None:
    """Write the tree of a Space into `folder`; with `model` (Hub id or folder) that one instead of the
    shipped.

    `training` brings what the tab Search and publish needs, and a login to publish with.
    Raises PretrainedError when the model cannot be loaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        shutil.copyfile(ROOT / name, folder / name)
    for name in (*PACKAGES, *([TRAINING] if training else [])):
        keep = shutil.ignore_patterns("__pycache__", "models")
        shutil.copytree(ROOT / name, folder / name, ignore=keep, dirs_exist_ok=True)
    models, preload = folder / "hub" / "models", None
    if model is None:
        for path in sorted((ROOT / "hub" / "models").glob("*/config.json")):
            _copy_model(path.parent, models / path.parent.name)
    else:
        network = searchseg.from_pretrained(model, token=token)
        target = models / Path(model).resolve().name
        searchseg.save_pretrained(network, target)
        if Path(model).is_dir():
            _copy_model(Path(model), target)
        else:
            _copy_records(model, str(network.commit), token, target)
            preload = _preload(model, network)
    (folder / "README.md").write_text(front_matter(title, model, preload, training), encoding="utf-8")


def _copy_records(model: str, commit: str, token: str | None, target: Path) -> None:
    """Bring the records of a Hub model that it has; the page does without the others."""
    for name in RECORDS:
        try:
            path = hf_hub_download(model, name, revision=commit, token=token)
        except (HTTPError, OSError):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def _preload(model: str, network: nn.Module) -> str | None:
    """The files of `model` for the cache of a Space, as "id file,file commit"; None for a private model.

    The Hub fetches them without a token while it builds the Space: one that it may not see ends the build.
    """
    try:
        get_hf_file_metadata(hf_hub_url(model, CONFIG, revision=network.commit), token=False)
    except (HTTPError, OSError):  # also without a network: then nobody knows
        return None
    names = (CONFIG, GENOTYPE, WEIGHTS) if network.genotype is not None else (CONFIG, WEIGHTS)
    return f"{model} {','.join(names)} {network.commit}"


def front_matter(
    title: str, model: str | None = None, preload: str | None = None, training: bool = False
) -> str:
    """README.md of a Space: what the Hub needs to run it, and a line for people."""
    lines = {
        "title": title,
        "emoji": "🐾",
        "colorFrom": "indigo",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "license": "apache-2.0",
        "suggested_hardware": "cpu-basic",
        "datasets": ["dpdl-benchmark/oxford_iiit_pet"] if model is None else None,
        "models": [model] if model is not None and not Path(model).is_dir() else None,
        "preload_from_hub": [preload] if preload else None,
        "hf_oauth": "true" if training else None,
        "hf_oauth_scopes": ["write-repos", "manage-repos"] if training else None,
        "short_description": "Segmentation by networks found by search",
    }
    yaml = [f"{key}: {_value(value)}" for key, value in lines.items() if value is not None]
    text = "Drop a picture: a network found by architecture search tells what every pixel shows."
    return "\n".join(["---", *yaml, "---", "", f"# {title}", "", text, ""])


def deploy(
    space: str,
    model: str | None = None,
    private: bool = False,
    token: str | None = None,
    training: bool = False,
) -> str:
    """Create or update the Space `space` ("user/name") in one commit, none if nothing has changed.

    Files of ours that an earlier commit had and this one has not leave; other people's files stay. Returns
    the address. Raises PublishError when the Hub does not take it, PretrainedError when there is no model.
    """
    if not is_hub_id(space):
        raise PublishError(f"{space!r:.120} is no Hub id: wanted is user/name, at most 96 characters")
    if training and not private:
        raise PublishError(
            "everybody who sees a page that trains can start and stop searches there: add --private"
        )
    api = HfApi(token=token)
    try:
        with tempfile.TemporaryDirectory() as name, bounded_waits():
            lay_out(Path(name), space.split("/")[-1], model, token, training)
            return _upload(api, Path(name), space, private, training)
    except (PublishError, PretrainedError):
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise explained(error, space) from error


def _upload(api: HfApi, folder: Path, space: str, private: bool, training: bool) -> str:
    place = {"repo_id": space, "repo_type": "space"}
    hidden = True if private else None
    url = patiently(lambda: api.create_repo(**place, space_sdk="gradio", private=hidden, exist_ok=True))
    if private and not patiently(lambda: api.space_info(space)).private:  # an older one stays as it is
        raise PublishError(f"{space} is public: make it private in its settings, or name another one")
    message, ours = (
        "Deploy the SearchSeg page",
        [f"{name}/*" for name in (*PACKAGES, *([TRAINING] if training else []))],
    )
    patiently(
        lambda: api.upload_folder(**place, folder_path=folder, commit_message=message, delete_patterns=ours)
    )
    return str(url)


def _copy_model(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def _value(value: str | list[str]) -> str:
    if isinstance(value, list):
        return "".join(f"\n- {item}" for item in value)
    return f'"{value}"' if value.replace(".", "").isdigit() else value


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m hub.deploy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("space", help="id of the Space, user/name; it is made when it does not exist")
    parser.add_argument("--model", help="Hub id or folder of the model to serve (default: those shipped)")
    parser.add_argument("--private", action="store_true", help="a Space that only its owner sees")
    parser.add_argument("--training", action="store_true", help="with the tab that searches and trains")
    parser.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write the Space here, send nothing")
    args = parser.parse_args(argv)
    try:
        if args.dry_run:
            lay_out(args.dry_run, args.space.split("/")[-1], args.model, training=args.training)
            print(f"the Space is in {args.dry_run}: python {args.dry_run / 'app.py'}")
        else:
            print(deploy(args.space, args.model, args.private, training=args.training))
            if args.training:
                print(SWITCH)
    except (PretrainedError, PublishError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
