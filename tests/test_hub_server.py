"""Proves that the test Hub serves the genuine huggingface_hub client, and each fault is what it says."""

import os
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
from hub_fixture import client_at, run_with_hub, start_with_hub
from hub_server import Hub, Token, front_matter
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub import hf_hub_download as download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

pytest_plugins = ["hub_fixture"]

README = b"""---
library_name: searchseg
license: mit
tags: [searchseg, image-segmentation]
datasets: [promise12]
date: 2026-01-02
model-index:
- name: net
  results:
  - task: {type: image-segmentation}
    dataset: {type: promise12, name: PROMISE12}
    metrics: [{type: dice, value: 0.91}]
---
# A card
"""
WEIGHTS = bytes(range(256)) * 200


@pytest.fixture
def alice(hub, monkeypatch):
    """The Hub with alice logged in and a pushed model of three files, alice/net."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    hub.create("alice/net")
    hub.commit("alice/net", {"README.md": README, "model.safetensors": WEIGHTS, "sub/config.json": b"{}"})
    hub.requests.clear()
    return hub


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net" / "sub").mkdir(parents=True)
    (tmp_path / "net" / "README.md").write_bytes(README)
    (tmp_path / "net" / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "net" / "sub" / "config.json").write_bytes(b"{}")
    return tmp_path / "net"


def fetch(filename="model.safetensors", **more):
    return Path(download("alice/net", filename, **more)).read_bytes()


def add(path, data):
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)


def push(*operations, **more):
    return huggingface_hub.create_commit("alice/net", operations, commit_message="a push", **more)


# ---- pushing and pulling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["model", "dataset", "space"])
def test_push_and_pull(hub, folder, monkeypatch, type):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    sdk = {"space_sdk": "gradio"} if type == "space" else {}
    url = huggingface_hub.create_repo("alice/net", private=True, repo_type=type, **sdk)
    assert (url.repo_id, url.repo_type) == ("alice/net", type)
    done = huggingface_hub.upload_folder(repo_id="alice/net", folder_path=folder, repo_type=type)
    assert done.oid == hub.head("alice/net", type=type)
    assert hub.files("alice/net", type=type)["model.safetensors"] == WEIGHTS
    assert len(hub.asked("PUT", "/lfs/")) == 1, "the weights, and nothing else, go the LFS way"
    local = Path(huggingface_hub.snapshot_download("alice/net", repo_type=type))
    assert local.is_relative_to(constants.HF_HUB_CACHE)
    for path in ("README.md", "model.safetensors", "sub/config.json"):
        assert (local / path).read_bytes() == (folder / path).read_bytes()
    assert huggingface_hub.repo_info("alice/net", repo_type=type).sha == done.oid
    huggingface_hub.delete_repo("alice/net", repo_type=type)
    assert not hub.exists("alice/net", type)
    assert not hub.unknown


def test_creating_twice(alice):
    with pytest.raises(HfHubHTTPError, match="409"):
        huggingface_hub.create_repo("alice/net")
    assert huggingface_hub.create_repo("alice/net", exist_ok=True).repo_id == "alice/net"


def test_unchanged_push_makes_no_commit(alice, folder):
    before = alice.log_of("alice/net")
    done = huggingface_hub.upload_folder(repo_id="alice/net", folder_path=folder)
    assert done.oid == before[0][0]
    assert alice.log_of("alice/net") == before
    assert not alice.asked("POST", "/commit/")
    assert not alice.asked("PUT")
    assert alice.commit("alice/net", {"README.md": README}) == before[0][0]


def test_delete_and_commits(alice):
    push(CommitOperationDelete("sub/"), add("new.txt", b"new"))
    assert sorted(alice.files("alice/net")) == [".gitattributes", "README.md", "model.safetensors", "new.txt"]
    alice.page_size = 2
    titles = [commit.title for commit in huggingface_hub.list_repo_commits("alice/net")]
    assert titles == ["a push", "a commit of the test", "initial commit"]
    with pytest.raises(EntryNotFoundError):
        push(CommitOperationDelete("absent.txt"))


def test_stale_parent_is_refused(alice):
    parent = alice.head("alice/net")
    newer = alice.commit("alice/net", {"other.txt": b"somebody else"})
    with pytest.raises(HfHubHTTPError) as refusal:
        push(add("mine.txt", b"mine"), parent_commit=parent)
    assert refusal.value.response.status_code == 412
    assert alice.head("alice/net") == newer
    assert push(add("mine.txt", b"mine"), parent_commit=newer[:10]).oid == alice.head("alice/net")


def test_pull_request(alice, monkeypatch):
    before = alice.head("alice/net")
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    with pytest.raises(HfHubHTTPError, match="403"):
        push(add("model.safetensors", WEIGHTS[1:]))
    done = push(add("model.safetensors", WEIGHTS[1:]), create_pr=True)
    assert (done.pr_num, done.pr_revision) == (1, "refs/pr/1")
    assert alice.head("alice/net") == before
    assert fetch(revision="refs/pr/1") == WEIGHTS[1:]
    assert fetch() == WEIGHTS
    refs = huggingface_hub.list_repo_refs("alice/net", include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]
    assert [talk.num for talk in huggingface_hub.get_repo_discussions("alice/net")] == [1]
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    huggingface_hub.merge_pull_request("alice/net", 1)
    assert huggingface_hub.get_discussion_details("alice/net", 1).status == "merged"
    assert alice.files("alice/net")["model.safetensors"] == WEIGHTS[1:]


def test_revisions(alice):
    first = alice.head("alice/net")
    huggingface_hub.create_tag("alice/net", tag="v1")
    huggingface_hub.create_branch("alice/net", branch="trial/one")
    push(add("sub/config.json", b"main"))
    push(add("sub/config.json", b"trial"), revision="trial/one")
    wanted = {
        "main": b"main",
        "trial/one": b"trial",
        "v1": b"{}",
        first: b"{}",
        alice.head("alice/net"): b"main",
    }
    for revision, data in wanted.items():
        assert fetch("sub/config.json", revision=revision) == data
        local = huggingface_hub.snapshot_download("alice/net", revision=revision)
        assert Path(local, "sub/config.json").read_bytes() == data
    refs = huggingface_hub.list_repo_refs("alice/net")
    assert [ref.name for ref in refs.branches] == ["main", "trial/one"]
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", first)]
    with pytest.raises(HfHubHTTPError, match="409"):
        huggingface_hub.create_tag("alice/net", tag="v1")
    huggingface_hub.delete_tag("alice/net", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        huggingface_hub.model_info("alice/net", revision="v1")


def test_what_is_missing(alice):
    with pytest.raises(EntryNotFoundError):
        fetch("absent.txt")
    with pytest.raises(RevisionNotFoundError):
        fetch(revision="absent")
    with pytest.raises(RepositoryNotFoundError):
        download("alice/absent", "a")
    assert huggingface_hub.file_exists("alice/net", "README.md")
    assert not huggingface_hub.repo_exists("alice/absent")


def test_tree_and_paths_info(alice):
    api = HfApi()
    alice.page_size = 2
    tree = {entry.path: entry for entry in api.list_repo_tree("alice/net", recursive=True)}
    assert sorted(tree) == [".gitattributes", "README.md", "model.safetensors", "sub", "sub/config.json"]
    assert [entry.path for entry in api.list_repo_tree("alice/net", "sub")] == ["sub/config.json"]
    assert "sub/config.json" not in [entry.path for entry in api.list_repo_tree("alice/net")]
    [weights] = api.get_paths_info("alice/net", ["model.safetensors", "absent"])
    assert (weights.size, weights.lfs.size) == (len(WEIGHTS), len(WEIGHTS))
    blobs = {s.rfilename: s.size for s in api.model_info("alice/net", files_metadata=True).siblings}
    assert blobs["model.safetensors"] == len(WEIGHTS)


def test_range(alice):
    http = huggingface_hub.utils.get_session()
    url = huggingface_hub.hf_hub_url("alice/net", "model.safetensors")
    for asked, part in (("5-9", WEIGHTS[5:10]), ("51000-", WEIGHTS[51000:]), ("-7", WEIGHTS[-7:])):
        answer = http.get(url, headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, part)
        assert answer.headers["Content-Range"].endswith(f"/{len(WEIGHTS)}")
    assert http.get(url, headers={"Range": "bytes=99999-"}).status_code == 416
    answer = http.head(url)
    assert (answer.headers["Content-Length"], answer.content) == (str(len(WEIGHTS)), b"")


def test_gitignore_and_empty_file(alice):
    push(add(".gitignore", b"*.tmp\n"), add("a.tmp", b"1"), add("empty.bin", b""))
    huggingface_hub.upload_file(repo_id="alice/net", path_or_fileobj=b"2", path_in_repo="sub/b.tmp")
    assert "sub/b.tmp" not in alice.files("alice/net")
    assert alice.files("alice/net")["empty.bin"] == b""


# ---- who may do what ---------------------------------------------------------------------------------------


def test_private(hub):
    hub.create("alice/net", private=True)
    hub.commit("alice/net", {"a.txt": b"a"})
    with pytest.raises(RepositoryNotFoundError, match="401"):
        fetch("a.txt")
    with pytest.raises(RepositoryNotFoundError, match="404"):
        fetch("a.txt", token="hf_bob")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        fetch("a.txt", token="hf_nobody")
    assert list(huggingface_hub.list_models()) == []
    assert fetch("a.txt", token="hf_alice_read") == b"a"
    assert [model.id for model in huggingface_hub.list_models(token="hf_alice_read")] == ["alice/net"]
    with pytest.raises(HfHubHTTPError, match="403"):
        push(add("a.txt", b"b"), token="hf_alice_read")
    huggingface_hub.update_repo_settings("alice/net", private=False, token="hf_alice")
    assert fetch("a.txt") == b"a"


def test_accounts(hub):
    assert huggingface_hub.whoami(token="hf_alice")["name"] == "alice"
    with pytest.raises(HfHubHTTPError):
        huggingface_hub.whoami(token="hf_nobody")
    with pytest.raises(HfHubHTTPError, match="403"):
        huggingface_hub.create_repo("alice/net", token="hf_bob")
    hub.tokens["hf_carol"] = Token("carol", orgs=("clinic",))
    assert huggingface_hub.create_repo("clinic/net", token="hf_carol").repo_id == "clinic/net"
    hub.create("clinic/mine", private=True, owner_token="hf_bob")
    assert huggingface_hub.model_info("clinic/mine", token="hf_bob").private


# ---- listings and cards ------------------------------------------------------------------------------------


def test_list_models(alice):
    for name in ("alice/other", "bob/net"):
        alice.create(name)
        alice.commit(name, {"README.md": README if name == "bob/net" else b"# no front matter"})
    alice.create("alice/data", type="dataset")
    alice.page_size = 1

    def listed(**query):
        return [model.id for model in huggingface_hub.list_models(**query)]

    assert listed() == ["alice/net", "alice/other", "bob/net"]
    assert listed(filter="searchseg") == ["alice/net", "bob/net"]
    assert listed(filter=["searchseg", "dataset:promise12", "license:mit"], author="bob") == ["bob/net"]
    assert listed(filter=["searchseg", "unheard-of"]) == []
    assert listed(search="OTHER") == ["alice/other"]
    assert listed(sort="last_modified", limit=2) == ["bob/net", "alice/other"]
    [bare] = huggingface_hub.list_models(author="bob")
    assert (bare.sha, bare.card_data, bare.siblings) == (None, None, None)
    [model] = huggingface_hub.list_models(author="bob", filter="searchseg", full=True, cardData=True)
    assert model.sha == alice.head("bob/net")
    assert "image-segmentation" in model.tags
    assert model.card_data.license == "mit"
    assert model.card_data.eval_results[0].metric_value == 0.91
    assert "README.md" in [sibling.rfilename for sibling in model.siblings]
    assert huggingface_hub.model_info("bob/net").library_name == "searchseg"
    assert [data.id for data in huggingface_hub.list_datasets()] == ["alice/data"]


def test_card_with_bad_yaml_is_refused(alice):
    with pytest.raises(ValueError, match="Invalid metadata"):
        push(add("README.md", b"---\ntags: [open\n---\n"))
    with pytest.raises(ValueError, match="list"):
        front_matter(b"---\n- a\n---\n")


# ---- faults ------------------------------------------------------------------------------------------------


def test_fail_once_is_retried_and_recorded(alice, folder):
    alice.fail("PUT", "/lfs/", 503)
    (folder / "model.safetensors").write_bytes(b"new" * 1000)
    huggingface_hub.upload_folder(repo_id="alice/net", folder_path=folder)
    assert len(alice.asked("PUT", "/lfs/")) == 2
    assert alice.files("alice/net")["model.safetensors"] == b"new" * 1000


def test_fail_for_ever_with_headers(alice):
    alice.fail(None, "/alice/net/", 429, times=None, headers={"Retry-After": "0"}, message="slow down")
    with pytest.raises(LocalEntryNotFoundError) as error:
        fetch()
    assert error.value.__cause__.response.headers["Retry-After"] == "0"
    assert "slow down" in str(error.value.__cause__)
    alice.heal()
    assert fetch() == WEIGHTS


@pytest.mark.parametrize("after", [0, 1, 20_000, len(WEIGHTS) - 1])
def test_cut_download_resumes_within_the_call(alice, after):
    alice.cut("model.safetensors", after)
    assert fetch() == WEIGHTS
    assert len(alice.asked("GET", "/resolve/")) == 2


def test_reset_download_fails(alice):
    alice.cut("model.safetensors", 0, reset=True)
    with pytest.raises(Exception, match="reset"):
        fetch()
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


def test_cut_upload(alice):
    before = alice.head("alice/net")
    alice.cut("/lfs/[0-9a-f]{64}", 30_000)
    alice.cut("/commit/", 10)
    with pytest.raises(Exception, match=r"disconnect|reset|closed|pipe"):
        push(add("new.bin", WEIGHTS * 4))
    assert len(alice.asked("PUT", "/lfs/")) == 2, "the client sends an LFS file again, but not a commit"
    assert alice.head("alice/net") == before
    push(add("new.bin", WEIGHTS * 4))
    assert alice.files("alice/net")["new.bin"] == WEIGHTS * 4


def test_lost_answer(alice):
    before = alice.head("alice/net")
    alice.lose_answer("/commit/")
    with pytest.raises(Exception, match=r"disconnect|closed"):
        push(add("new.txt", b"new"))
    assert alice.head("alice/net") != before
    assert alice.files("alice/net")["new.txt"] == b"new"


def test_slow(alice, monkeypatch):
    alice.slow("/api/models/alice/net", 0.3)
    begun = time.monotonic()
    huggingface_hub.model_info("alice/net")
    assert time.monotonic() - begun >= 0.3
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    alice.slow("model.safetensors", 0.5, times=1, method="GET")
    assert fetch() == WEIGHTS
    assert len(alice.asked("GET", "/resolve/")) == 2


def test_corrupt(alice):
    alice.corrupt("model.safetensors")
    assert fetch() == bytes(byte ^ 0xFF for byte in WEIGHTS), "the client does not check sha256"


def test_lie_about_size(alice):
    alice.lie_about_size("model.safetensors")
    with pytest.raises(OSError, match="Consistency check"):
        fetch()
    [info] = huggingface_hub.HfApi().get_paths_info("alice/net", "model.safetensors")
    assert info.size == len(WEIGHTS) + 1


def test_before_moves_a_commit_between_two_files(alice):
    first = alice.head("alice/net")
    alice.before("config.json", lambda: alice.commit("alice/net", {"sub/config.json": b"newer"}))
    assert fetch() == WEIGHTS
    assert fetch("sub/config.json") == b"newer"
    assert alice.head("alice/net") != first
    local = huggingface_hub.snapshot_download("alice/net", revision=first)
    assert Path(local, "sub/config.json").read_bytes() == b"{}"


def test_hook_that_raises_is_reported(alice):
    alice.before("README.md", lambda: alice.commit("alice/absent", {}))
    assert fetch("README.md") == README
    assert [type(error) for error in alice.errors] == [KeyError]
    alice.errors.clear()


def test_foreign_cdn_gets_no_token(alice):
    alice.cdn = True
    assert fetch() == WEIGHTS
    assert alice.asked("GET", "/cdn/")
    assert len(alice.asked("HEAD")) == 1, "the HEAD stops at the redirect"


def test_parallel_pushes_are_all_kept(alice):
    threads = [threading.Thread(target=push, args=[add(f"{n}.txt", b"%d" % n)]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"{n}.txt" for n in range(8)} <= set(alice.files("alice/net"))
    assert len(alice.log_of("alice/net")) == 10


# ---- the fixture itself ------------------------------------------------------------------------------------


def test_client_is_given_back(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_developer")
    kept = {name: value for name, value in vars(constants).items() if name.isupper()}
    environ = dict(os.environ)
    with Hub(tmp_path / "hub") as server:
        with client_at(server, tmp_path / "home", token="hf_alice"):
            assert huggingface_hub.whoami()["name"] == "alice"
            assert huggingface_hub.HfApi().endpoint == huggingface_hub.hf_api.api.endpoint == server.url
        with client_at(server, tmp_path / "home"):
            assert huggingface_hub.get_token() is None
            huggingface_hub.login("hf_bob")
            assert huggingface_hub.whoami()["name"] == "bob"
            assert (tmp_path / "home" / "token").read_text() == "hf_bob"
            server.fail("GET", "/resolve/", times=None)
            begun = time.monotonic()
            huggingface_hub.utils.http_backoff("HEAD", f"{server.url}/a/b/resolve/main/c", max_retries=3)
            with pytest.raises(HfHubHTTPError, match="503"):
                huggingface_hub.utils.http_backoff("GET", f"{server.url}/a/b/resolve/main/c", max_retries=3)
            assert time.monotonic() - begun < 3, "three retries would wait 7 seconds"
    assert {name: value for name, value in vars(constants).items() if name.isupper()} == kept
    assert dict(os.environ) == environ
    asked = len(server.requests)
    with pytest.raises((OfflineModeIsEnabled, LocalEntryNotFoundError)):
        huggingface_hub.model_info("alice/net")
    assert len(server.requests) == asked


def test_state_survives_a_restart(tmp_path):
    with Hub(tmp_path) as server:
        server.create("alice/net", private=True)
        sha = server.commit("alice/net", {"a.bin": b"a\0"})
    with Hub(tmp_path) as server:
        assert server.head("alice/net") == sha
        assert server.files("alice/net")["a.bin"] == b"a\0"


def test_stop_does_not_wait_for_idle_connections(tmp_path):
    before = set(threading.enumerate())  # other fixtures of this process have servers of their own
    server = Hub(tmp_path / "hub").start()
    with client_at(server, tmp_path / "home"):
        list(huggingface_hub.list_models())
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 2
        left = set(threading.enumerate()) - before
        assert not [thread for thread in left if "process_request" in thread.name]
        with pytest.raises(Exception, match="refused"):
            list(huggingface_hub.list_models())


def test_subprocess(alice):
    script = (
        "import huggingface_hub as h; print(h.whoami()['name'], h.constants.HF_HUB_CACHE);"
        "print(h.snapshot_download('alice/net')); h.upload_file(repo_id='alice/net', path_or_fileobj=b'x',"
        "path_in_repo='x.bin')"
    )
    done = run_with_hub(alice, ["python", "-c", script], token="hf_alice")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"alice {alice.folder}")
    assert alice.files("alice/net")["x.bin"] == b"x"
    assert not alice.unknown


def test_anonymous_subprocess_killed_half_way(alice, tmp_path):
    """This process's token is not inherited, and start_with_hub gives a process to kill."""
    script = "import os, huggingface_hub as h; print(os.getcwd(), h.get_token(), flush=True);"
    script += "h.upload_file(repo_id='alice/net', path_or_fileobj=b'x', path_in_repo='x', token='hf_alice')"
    before = alice.head("alice/net")
    alice.before("/preupload/", lambda: process.kill())
    process = start_with_hub(alice, ["python", "-c", script], cwd=tmp_path)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (-9, f"{tmp_path} None\n")
    assert alice.head("alice/net") == before
