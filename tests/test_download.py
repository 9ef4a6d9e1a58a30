"""Proves that a model of the Hub arrives whole and from one commit, or is one PretrainedError with a cure."""

import contextlib
import dataclasses
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hub_server
import huggingface_hub
import pytest
import torch
from hub_server import Hub
from huggingface_hub import constants
from test_pretrained import config_of, scores, searchnet, unet

import searchseg
from searchseg import PretrainedError, Segmenter, download, faults, from_pretrained, save_pretrained
from searchseg.pretrained import MAX_TEXT_BYTES

pytest_plugins = ["hub_fixture"]

CONFIG, GENOTYPE, WEIGHTS = "config.json", "genotype.json", "model.safetensors"
ID = "alice/net"
NOT_WANTED = {
    "README.md": b"# Card\n", "pytorch_model.bin": b"\x80\x04.", "model.py": b"import os\n", GENOTYPE: b"{}",
}  # fmt: skip


def saved(model: torch.nn.Module, folder: Path) -> dict[str, bytes]:
    save_pretrained(model, folder, config_of(model))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def nets() -> dict[str, torch.nn.Module]:
    """A SEARCH-Net, a UNet, and another UNet of the same form."""
    nets = {"searchnet": searchnet().eval(), "unet": unet().eval(), "other": unet().eval()}
    nets["other"].head.bias.data += 1
    return nets


@pytest.fixture(scope="module")
def files(nets, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    return {name: saved(net, tmp_path_factory.mktemp(name)) for name, net in nets.items()}


@pytest.fixture
def patch(hub) -> Iterator[pytest.MonkeyPatch]:
    """For what `hub` patches too: taken back before it takes back its own."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture
def pauses(patch) -> list[float]:
    """The seconds that a download waited between its tries; nobody really waits for them."""
    waited: list[float] = []
    clock = {"monotonic": staticmethod(time.monotonic), "sleep": staticmethod(waited.append)}
    patch.setattr(faults, "time", type("Clock", (), clock))
    return waited


@pytest.fixture
def there(hub, files, tmp_path, patch, pauses) -> Hub:
    """A Hub with a UNet, alice/net, among files that nobody wants; the caller stands elsewhere."""
    patch.chdir(tmp_path)
    hub.create(ID)
    hub.commit(ID, {**files["unet"], **NOT_WANTED})
    hub.requests.clear()
    return hub


@pytest.fixture
def searched(there, files) -> Hub:
    """The same with a SEARCH-Net, which takes ten times as long to build."""
    there.commit(ID, files["searchnet"])
    return there


def paths(hub: Hub, method: str | None = None) -> list[str]:
    return [f"{verb} {path.partition('/resolve/')[2] or path}" for verb, path in hub.asked(method)]


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE) / "models--alice--net"


def blobs() -> list[Path]:
    return sorted((cache() / "blobs").glob("*"))


def refused(fault: str, source: str = ID, **options: object) -> str:
    with pytest.raises(PretrainedError) as caught:
        from_pretrained(source, **options)
    message = str(caught.value)
    assert fault in message and len(message) < 700 and "hf_alice" not in message
    return message


# ---- what is loaded ----------------------------------------------------------------------------------------


def test_a_model_of_the_hub_is_the_one_that_was_pushed(searched, nets):
    loaded = from_pretrained(ID)
    assert torch.equal(scores(loaded), scores(nets["searchnet"]))
    assert loaded.commit == searched.head(ID) and not loaded.training and loaded.genotype is not None


def test_only_the_needed_files_are_fetched_and_all_from_one_commit(searched):
    sha = from_pretrained(ID).commit
    wanted = [f"{verb} {sha}/{name}" for name in (CONFIG, GENOTYPE, WEIGHTS) for verb in ("HEAD", "GET")]
    assert paths(searched) == [f"HEAD main/{CONFIG}", *wanted]


def test_a_unet_fetches_no_genotype(there, nets):
    sha = there.head(ID)
    assert torch.equal(scores(from_pretrained(ID)), scores(nets["unet"]))
    assert paths(there, "GET") == [f"GET {sha}/{CONFIG}", f"GET {sha}/{WEIGHTS}"]


def test_a_segmenter_knows_its_commit_and_a_folder_has_none(there, files, tmp_path):
    assert Segmenter.from_pretrained(ID, device="cpu").commit == there.head(ID)
    there.requests.clear()
    assert Segmenter.from_pretrained(ID, device="cpu", local_files_only=True).commit == there.head(ID)
    assert not there.requests
    for name, content in files["unet"].items():
        (tmp_path / name).write_bytes(content)
    assert Segmenter.from_pretrained(tmp_path, device="cpu").commit is None
    assert from_pretrained(tmp_path).commit is None


def test_a_folder_of_that_name_comes_first(there, files, nets):
    Path(ID).mkdir(parents=True)
    for name, content in files["other"].items():
        (Path(ID) / name).write_bytes(content)
    assert torch.equal(scores(from_pretrained(ID)), scores(nets["other"])) and not there.requests


def test_a_revision_is_a_branch_a_tag_a_pull_request_or_a_commit(there, files, nets):
    old = there.head(ID)
    api = huggingface_hub.HfApi(token="hf_alice")
    api.create_tag(ID, tag="v1.0")
    there.commit(ID, files["other"])
    api.create_branch(ID, branch="try/this", revision=old)
    for revision in (old, old.upper(), old[:10], "v1.0", "try/this"):
        loaded = from_pretrained(ID, revision=revision)
        assert loaded.commit == old and torch.equal(scores(loaded), scores(nets["unet"]))
    assert from_pretrained(ID).commit == there.head(ID) != old
    request = api.create_commit(
        ID, [huggingface_hub.CommitOperationAdd("notes", b"x")], commit_message="m", create_pr=True
    )
    assert from_pretrained(ID, revision=request.pr_revision).commit == request.oid


def test_a_private_repository_opens_to_its_token_only(hub, files, nets, patch):
    hub.create(ID, private=True)
    hub.commit(ID, files["unet"])
    refused("the Hub has no alice/net, or it is private: check the name; if it is private, log in")
    refused("or it is private", token="hf_bob")
    refused("does not accept the token for alice/net (mistyped, expired?)", token="hf_nobody"[3:])
    assert torch.equal(scores(from_pretrained(ID, token="hf_alice_read")), scores(nets["unet"]))
    assert Segmenter.from_pretrained(ID, device="cpu", token="hf_alice").commit == hub.head(ID)
    patch.setenv("HF_TOKEN", "hf_alice")
    assert from_pretrained(ID).commit == hub.head(ID)


@pytest.mark.parametrize("token", ["", "hf_alice\n", "hf alice", "hf_älice"])
def test_a_token_that_cannot_be_one_is_not_sent_and_not_shown(token, there):
    assert "lice" not in refused("token is empty or holds a character", token=token).replace("alice/net", "")
    assert not there.requests


def test_a_commit_that_comes_between_two_files_changes_nothing(searched, files, nets):
    first = searched.head(ID)
    for name in (CONFIG, GENOTYPE, WEIGHTS):
        for method in ("HEAD", "GET"):
            shutil.rmtree(cache(), ignore_errors=True)
            searched.commit(ID, files["searchnet"])
            first = searched.head(ID)
            searched.before(f"{first}/{name}", lambda: searched.commit(ID, files["unet"]), method=method)
            loaded = from_pretrained(ID)
            assert loaded.commit == first != searched.head(ID)
            assert torch.equal(scores(loaded), scores(nets["searchnet"]))
            searched.heal()


def test_weights_from_a_store_of_files_arrive_and_the_token_stays(there, nets):
    there.cdn = True
    try:
        loaded = from_pretrained(ID, token="hf_alice")  # the store answers 400 when it is sent the token
    finally:
        there.cdn = False
    assert torch.equal(scores(loaded), scores(nets["unet"]))
    assert there.asked("GET", "^/cdn/")


def test_a_store_of_files_that_refuses_is_named_as_the_hub(there):
    there.cdn = True
    there.fail("GET", "^/cdn/", 401)
    try:
        refused("the Hub does not accept the token for alice/net", token="hf_alice")
    finally:
        there.cdn = False


# ---- the cache ---------------------------------------------------------------------------------------------


def test_a_cached_commit_makes_no_request_and_a_cached_branch_one(there, nets):
    sha = from_pretrained(ID).commit
    there.requests.clear()
    assert torch.equal(scores(from_pretrained(ID, revision=sha)), scores(nets["unet"]))
    assert not there.requests
    assert from_pretrained(ID).commit == sha
    assert paths(there) == [f"HEAD main/{CONFIG}"]


@pytest.mark.parametrize("way", ["variable", "argument"])
@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_offline_the_cache_is_enough(way, revision, there, nets, patch):
    sha = from_pretrained(ID).commit
    there.requests.clear()
    patch.setattr(constants, "HF_HUB_OFFLINE", way == "variable")
    loaded = from_pretrained(
        ID, revision=sha if revision == "commit" else revision, local_files_only=way == "argument"
    )
    assert loaded.commit == sha and torch.equal(scores(loaded), scores(nets["unet"]))
    assert not there.requests


@pytest.mark.parametrize("name", [CONFIG, GENOTYPE, WEIGHTS])
def test_offline_a_missing_file_is_named(name, searched):
    sha = from_pretrained(ID).commit
    searched.requests.clear()
    (cache() / "snapshots" / sha / name).unlink()
    refused(f"{name} of alice/net at {sha} is missing: not in the cache", local_files_only=True)
    refused("load it once with the network", revision=sha, local_files_only=True)
    refused("revision 'v2' is not in the cache", revision="v2", local_files_only=True)
    refused("not in the cache", "alice/other", local_files_only=True)
    assert not searched.requests


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "gone": Path.unlink,
}


@pytest.mark.parametrize(
    "name, damage",
    [*((name, damage) for name in (CONFIG, WEIGHTS) for damage in DAMAGES), (GENOTYPE, "one bit")],
)
def test_a_damaged_file_of_the_cache_is_fetched_again_or_named(name, damage, there, files, nets):
    kind = "searchnet" if name == GENOTYPE else "unet"
    there.commit(ID, files[kind])
    sha = from_pretrained(ID).commit
    before = len(blobs())
    DAMAGES[damage]((cache() / "snapshots" / sha / name).resolve())
    there.requests.clear()
    message = refused(f"{name} of alice/net at {sha} is", revision=sha, local_files_only=True)
    assert ("damaged" in message) != ("missing" in message) and not there.requests
    healed = from_pretrained(ID, revision=sha)
    assert torch.equal(scores(healed), scores(nets[kind]))
    assert paths(there) == [f"HEAD {sha}/{name}", f"GET {sha}/{name}"]
    there.requests.clear()
    from_pretrained(ID, revision=sha, local_files_only=True)
    assert len(blobs()) == before and not there.requests


def test_without_links_a_damaged_file_is_an_error_that_names_the_cure(there, patch):
    def no_links(*arguments: object) -> None:
        raise OSError("no symbolic links here")

    patch.setattr(Path, "symlink_to", no_links)
    sha = from_pretrained(ID).commit
    folder = cache() / "snapshots" / sha
    assert not blobs() and not (folder / WEIGHTS).is_symlink()
    assert from_pretrained(ID, local_files_only=True).commit == sha
    for name, fault in ((WEIGHTS, "model.safetensors is damaged"), (CONFIG, "config.json is not JSON")):
        os.truncate(folder / name, (folder / name).stat().st_size - 9)
        assert f"delete {folder}" in refused(fault, revision=sha)
    shutil.rmtree(folder)
    assert from_pretrained(ID, revision=sha).commit == sha


def test_the_cache_is_shared_with_the_client_of_the_hub(there):
    wanted = [CONFIG, WEIGHTS]
    folder = huggingface_hub.snapshot_download(ID, allow_patterns=wanted)
    there.requests.clear()
    assert from_pretrained(ID, revision=there.head(ID)).commit == Path(folder).name
    assert not there.requests
    shutil.rmtree(cache())
    from_pretrained(ID)
    there.requests.clear()
    paths_of_client = [huggingface_hub.hf_hub_download(ID, name, local_files_only=True) for name in wanted]
    assert {Path(path).parent for path in paths_of_client} == {Path(folder)} and not there.requests


def test_a_new_commit_costs_only_what_it_changes(there, files, nets):
    first = from_pretrained(ID).commit
    second = there.commit(ID, {CONFIG: files["unet"][CONFIG] + b" "})
    there.requests.clear()
    assert torch.equal(scores(from_pretrained(ID)), scores(nets["unet"]))
    assert paths(there, "GET") == [f"GET {second}/{CONFIG}"]
    there.requests.clear()
    assert [from_pretrained(ID, revision=sha).commit for sha in (first, second)] == [first, second]
    assert not there.requests


def test_a_blob_may_be_a_link_to_a_store_that_caches_share(there, tmp_path):
    sha = from_pretrained(ID).commit
    for blob in blobs():
        blob.rename(tmp_path / ("e" * 62 + blob.name[:2]))
        blob.symlink_to(tmp_path / ("e" * 62 + blob.name[:2]))
    there.requests.clear()
    assert from_pretrained(ID, revision=sha).commit == sha and not there.requests


def test_a_failed_update_leaves_the_old_model_to_those_who_are_offline(there, files):
    old = from_pretrained(ID).commit
    there.commit(ID, files["other"])
    there.fail("GET", WEIGHTS, status=500, times=None)
    refused("the Hub is out of order (500)")
    assert from_pretrained(ID, local_files_only=True).commit == old


def test_several_at_once_get_the_same(there, nets):
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(from_pretrained, [ID] * 4))
    assert all(torch.equal(scores(net), scores(nets["unet"])) for net in loaded)
    assert len(blobs()) == 2


def test_a_cache_that_cannot_be_written_is_named(there, patch, tmp_path):
    (tmp_path / "file").write_text("")
    patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    refused("cannot be used: Not a directory; free some room, or let HF_HOME name another folder")


# ---- what is refused ---------------------------------------------------------------------------------------

NAMES = [
    "", " ", "../x", "..", ".", "a/b/c", "/no/such/folder", "/no", "x" * 300, "x" * 97 + "/name", ".name",
    "user/.name", "user/name.", "user/..", "user/na me", "user/name/", "/user/name", "user//name", "a--b/c",
    "user/name.git", "https://huggingface.co/user/name", "C:\\models", "user/name\n", "üser/name", "a\0b",
    "~/x", "user/name?x=1", "user/%2e%2e", "datasets/user/name", "-x/y",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_cannot_be_one_is_refused_before_any_request(name, there, tmp_path, patch):
    (tmp_path / "empty").mkdir()
    patch.chdir(tmp_path / "empty")
    if name in ("..", "."):  # folders, if no models
        refused("config.json is missing", name)
    else:
        refused("neither a folder nor a Hub id such as user/name", name)
    assert not there.requests and not Path(constants.HF_HUB_CACHE).exists()


@pytest.mark.parametrize(
    "revision", ["", "..", "../main", "a/../b", "/main", "main/", "a b", "a\nb", "a\\b", "x" * 300]
)
def test_a_revision_that_cannot_be_one_is_refused_before_any_request(revision, there):
    refused("names no branch, tag or commit", revision=revision)
    refused("names no branch, tag or commit", revision=revision, local_files_only=True)
    assert not there.requests


def newer(content: bytes) -> bytes:
    return content.replace(b'"schema": 1', b'"schema": 2')


Change = Callable[[Hub, dict[str, dict[str, bytes]]], object]
NOT_OURS: dict[str, tuple[Change, str]] = {
    "no config": (lambda hub, files: hub.commit(ID, {}, delete=[CONFIG]), "alice/net has no config.json at"),
    "no genotype": (
        lambda hub, files: hub.commit(ID, {CONFIG: files["searchnet"][CONFIG]}, delete=[GENOTYPE]),
        "has no genotype.json at",
    ),
    "newer genotype": (
        lambda hub, files: hub.commit(
            ID, {**files["searchnet"], GENOTYPE: newer(files["searchnet"][GENOTYPE])}
        ),
        "genotype has schema 2",
    ),
    "newer schema": (
        lambda hub, files: hub.commit(ID, {CONFIG: newer(files["unet"][CONFIG])}),
        "upgrade searchseg",
    ),
    "another library": (
        lambda hub, files: hub.commit(ID, {CONFIG: b'{"model_type": "bert"}'}),
        "no 'architecture'",
    ),
    "no JSON": (lambda hub, files: hub.commit(ID, {CONFIG: b"{"}), "config.json is not JSON"),
    "a pickle for weights": (
        lambda hub, files: hub.commit(ID, {}, delete=[WEIGHTS]),
        "has no model.safetensors at",
    ),
    "weights of another": (
        lambda hub, files: hub.commit(ID, {WEIGHTS: files["searchnet"][WEIGHTS]}),
        "do not belong together",
    ),
    "weights that are a pickle": (
        lambda hub, files: hub.commit(ID, {WEIGHTS: b"\x80\x04" * 99}),
        "not a safetensors",
    ),
}


@pytest.mark.parametrize("change, fault", NOT_OURS.values(), ids=NOT_OURS)
def test_what_is_not_ours_is_named(change, fault, there, files):
    change(there, files)
    message = refused(fault)
    assert "alice/net" in message
    assert not there.asked(None, "bin|model.py|README")
    if "safetensors" not in fault and "belong" not in fault:
        assert not there.asked(None, WEIGHTS), "the weights can wait until the rest is sound"


@pytest.mark.parametrize("revision", ["v9", "0" * 40, "abcdef1"])
def test_a_revision_that_is_not_there_is_named(revision, there):
    refused(f"alice/net has no revision '{revision}': give a branch, tag or commit of it", revision=revision)


def test_a_repository_that_is_not_there_is_named(there):
    refused("the Hub has no alice/other, or it is private: check the name", "alice/other")
    refused("the Hub has no alice/other, or it is private", "alice/other", token="hf_alice")
    refused("the Hub has no gpt3, or it is private", "gpt3")


ANSWERS = [
    (401, {}, "or it is private"),
    (401, {"X-Error-Code": "GatedRepo"}, "alice/net is gated: ask for access on its page"),
    (403, {"X-Error-Code": "GatedRepo"}, "alice/net is gated: ask for access on its page"),
    (403, {}, "no access to alice/net (403): ask its owner"),
    (403, {"X-Error-Message": "Access to this resource is disabled."}, "no access to alice/net (403)"),
    (404, {}, "the Hub has no alice/net"),
    (400, {}, "the Hub answers 400 for"),
    (409, {}, "the Hub answers 409 for"),
    (412, {}, "the Hub answers 412 for"),
    (416, {}, "the Hub answers 416 for"),
]


@pytest.mark.parametrize("where", [f"HEAD .*main/{CONFIG}", f"HEAD .*/{WEIGHTS}", f"GET .*/{WEIGHTS}"])
@pytest.mark.parametrize("status, headers, fault", ANSWERS)
def test_a_refusal_is_final(where, status, headers, fault, there, pauses):
    method, _, path = where.partition(" ")
    there.fail(method, path, status, times=None, headers=headers)
    refused(fault)
    assert len(there.asked(method, path)) == 1 and not pauses


@pytest.mark.parametrize("where", [f"HEAD .*main/{CONFIG}", f"HEAD .*/{WEIGHTS}", f"GET .*/{WEIGHTS}"])
@pytest.mark.parametrize(
    "status, fault",
    [(429, "too many requests for alice/net (429)"), (500, "the Hub is out of order (500)"),
     (502, "out of order (502)"), (503, "out of order (503)"), (504, "out of order (504)")],
)  # fmt: skip
def test_a_server_in_trouble_is_asked_four_times(where, status, fault, there, pauses):
    method, _, path = where.partition(" ")
    there.fail(method, path, status, times=3)
    assert from_pretrained(ID).commit == there.head(ID) and pauses == [1, 2, 4]
    shutil.rmtree(cache())
    there.requests.clear()
    there.fail(method, path, status, times=None)
    refused(fault)
    assert len(there.asked(method, path)) == 4 and len(pauses) == 6


def test_a_server_says_how_long_to_wait_within_reason(there, pauses):
    there.fail("HEAD", CONFIG, 429, headers={"Retry-After": "7"})
    there.fail("HEAD", CONFIG, 503, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})
    from_pretrained(ID)
    assert pauses == [7, 2]
    there.fail("GET", WEIGHTS, 429, headers={"Retry-After": "3600"}, times=None)
    shutil.rmtree(cache())
    refused("asks to wait 3600.0 seconds")
    assert pauses == [7, 2]


@pytest.mark.parametrize("commit", [None, "../../../etc", "main", "F" * 40])
def test_a_server_that_is_no_hub_is_named(commit, there):
    there.fail("HEAD", CONFIG, 200, headers={"X-Repo-Commit": commit} if commit else {}, times=None)
    refused("does not answer as a Hub, it names no commit of alice/net: check HF_ENDPOINT")
    assert not cache().exists()


def test_a_file_of_another_commit_is_refused(there):
    there.fail("HEAD", f"/{WEIGHTS}", 200, headers={"X-Repo-Commit": "f" * 40, "ETag": "../../x"}, times=None)
    refused(f"the Hub gives model.safetensors of alice/net from commit '{'f' * 40}', not from")


# ---- broken downloads --------------------------------------------------------------------------------------


def nothing_half() -> None:
    """Neither a piece of a download nor a model is in the cache."""
    assert not list(cache().rglob("*.incomplete")) and not list(cache().rglob(f"*/{WEIGHTS}"))
    assert not list(cache().rglob("*.tmp")) and not (cache() / "refs").exists()
    assert all(download._agrees(path, path.name) for path in blobs())


@pytest.mark.parametrize("share", random.Random(4).sample(range(1000), 20))
def test_a_download_that_is_cut_is_tried_again_or_named(share, there, files, nets, pauses):
    size = len(files["unet"][WEIGHTS])
    there.cut(WEIGHTS, after_bytes=size * share // 1000, times=None, reset=share % 2 == 0)
    message = refused("the Hub, http://127.0.0.1")
    assert f"cuts the connection for {ID}" in message and "local_files_only=True" in message
    assert len(there.asked("GET", WEIGHTS)) == 4 and pauses == [1, 2, 4]
    nothing_half()
    there.heal()
    there.cut(WEIGHTS, after_bytes=size * share // 1000, times=3)
    assert torch.equal(scores(from_pretrained(ID)), scores(nets["unet"]))


@pytest.mark.parametrize("name", [CONFIG, GENOTYPE])
def test_a_text_that_is_cut_is_tried_again_or_named(name, searched):
    searched.cut(name, after_bytes=30, times=None)
    refused("cuts the connection")
    nothing_half()


@pytest.mark.parametrize("by", [-100, -1, 1, 100])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_wrong_size_is_tried_again_or_named(name, by, there, files, pauses):
    there.lie_about_size(f"[0-9a-f]{{40}}/{name}", by, times=None)
    announced = len(files["unet"][name]) + by
    refused(f"announced were {announced}: try again later; if it stays, push the model again")
    assert pauses == [1, 2, 4]
    nothing_half()
    there.heal()
    there.lie_about_size(f"[0-9a-f]{{40}}/{name}", by, times=1)
    assert from_pretrained(ID).commit == there.head(ID)


def test_a_wrong_hash_is_tried_again_or_named(there, nets, pauses):
    there.corrupt(WEIGHTS, times=None)
    refused("model.safetensors of alice/net came damaged: its sha256 is not")
    assert len(there.asked("GET", WEIGHTS)) == 4 and pauses == [1, 2, 4]
    nothing_half()
    there.heal()
    there.corrupt(WEIGHTS, times=1)
    assert torch.equal(scores(from_pretrained(ID)), scores(nets["unet"]))


@pytest.mark.parametrize(
    "where, limit, seconds",  # the GET of config.json, under the same limit, must not be slow itself
    [
        (f"HEAD .*main/{CONFIG}", "HF_HUB_ETAG_TIMEOUT", 0.1),
        (f"GET .*/{WEIGHTS}", "HF_HUB_DOWNLOAD_TIMEOUT", 1),
    ],
)
def test_a_silent_server_is_given_up(where, limit, seconds, there, patch, pauses):
    patch.setattr(constants, limit, seconds)
    method, _, path = where.partition(" ")
    there.slow(path, 60, method=method)
    began = time.monotonic()
    refused("is too slow for alice/net (ReadTimeout")
    assert time.monotonic() - began < 40 and len(there.asked(method, path)) == 4 and pauses == [1, 2, 4]


def test_a_server_that_sends_too_slowly_is_given_up(there, patch):
    patch.setattr(download, "SECONDS", 0.05)
    patch.setattr(download, "SLOWEST", 1e12)
    there.slow(WEIGHTS, 0.1, method="GET")
    refused("model.safetensors of alice/net comes too slowly")
    assert len(there.asked("GET", WEIGHTS)) == 1
    nothing_half()


def test_a_server_that_sends_a_little_now_and_then_is_given_up(there, patch, pauses):
    patch.setattr(download, "SECONDS", 0.5)
    patch.setattr(download, "SLOWEST", 1e12)
    send = hub_server._Handler._send

    def drip(handler, answer, shown):
        if handler.command != "GET" or WEIGHTS not in shown:
            return send(handler, answer, shown)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        with contextlib.suppress(OSError):  # the client has left
            for byte in answer.body[:200]:  # 10 s, and every pause far below the client's limit of silence
                handler.wfile.write(bytes([byte]))
                time.sleep(0.05)
        handler.close_connection = True
        return None

    patch.setattr(hub_server._Handler, "_send", drip)
    began = time.monotonic()
    refused("model.safetensors of alice/net comes too slowly")
    assert time.monotonic() - began < 5 and len(there.asked("GET", WEIGHTS)) == 1 and not pauses
    nothing_half()


@pytest.mark.parametrize("name", [CONFIG, GENOTYPE, WEIGHTS])
def test_a_file_that_is_too_large_is_refused_before_it_is_fetched(name, searched):
    size = (5 if name == WEIGHTS else 1) * MAX_TEXT_BYTES + 1
    searched.commit(ID, {name: b" " * size})
    refused(f"{name} has {size} bytes, at most")
    assert not searched.asked("GET", name)


def test_a_file_of_unknown_size_is_stopped_where_it_is_too_large(there, patch):
    ask = download._ask
    patch.setattr(download, "_ask", lambda *names: dataclasses.replace(ask(*names), size=None))
    assert from_pretrained(ID).commit == there.head(ID)
    there.commit(ID, {CONFIG: b" " * (8 * MAX_TEXT_BYTES)})
    message = refused(f"at most {MAX_TEXT_BYTES} are wanted")
    assert f"has {8 * MAX_TEXT_BYTES} bytes" not in message, "all of it was received"
    assert len(there.asked("GET", CONFIG)) == 2


def test_without_a_network_the_cure_is_named(there, patch, pauses):
    sha = from_pretrained(ID).commit
    patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    patch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}"
    )
    refused("'alice/net' is no folder here, and the Hub, http://127.0.0.1:1, cannot be reached (ConnectError")
    assert pauses == [1, 2, 4]
    assert from_pretrained(ID, local_files_only=True).commit == sha
    assert from_pretrained(ID, revision=sha).commit == sha


def test_the_library_starts_without_the_client_of_the_hub():
    code = "import searchseg, sys; sys.exit('huggingface_hub' in sys.modules or 'httpx2' in sys.modules)"
    root = Path(searchseg.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, check=False).returncode == 0
