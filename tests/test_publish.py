"""Proves that a publication is one whole commit or none whatever the Hub answers; it never writes locally."""

import hashlib
import io
import json
import random
import re
import types
from pathlib import Path

import pytest
from run_folder import write_run

import searchseg
from hub import contents, remote
from hub import publish as command
from hub.contents import NAMES, Contents, read_model
from hub.export import ExportError
from hub.publish import PublishError, publish
from hub.readme import END, START

pytest_plugins = ["hub_fixture"]

ID = "alice/pets"


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """A run folder with everything a run leaves, beside things that must never be sent."""
    folder = tmp_path_factory.mktemp("runs") / "net"
    write_run(folder)
    for name in ("checkpoint.pt", "settings.json", "notes.txt", ".env", "search.zip", "search/halves.json"):
        (folder / name).write_bytes(b"private")
    return folder


SENT = {
    "config.json", "genotype.json", "model.safetensors", "metrics.json", "history.jsonl", "loss.png",
    "miou.png", "search/alpha.jsonl", "architecture.svg", "README.md",
}  # fmt: skip


def digest(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file of a folder with its bytes and its time of change."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def alice(hub, monkeypatch):
    """An empty Hub with alice logged in, and no pauses between tries; `alice.slept` lists them."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    hub.slept = []
    monkeypatch.setattr(remote, "time", types.SimpleNamespace(sleep=hub.slept.append))
    return hub


@pytest.fixture
def folder(packed):
    """The run folder; a test fails if anything in it has changed."""
    before = digest(packed)
    yield packed
    assert digest(packed) == before, "the local folder was changed"


def snapshot(hub) -> tuple:
    """What others see: the commits and the files of the repository."""
    return (hub.log_of(ID), hub.files(ID)) if hub.exists(ID) else ([], {})


def published_files(hub, **place) -> dict[str, bytes]:
    return {name: data for name, data in hub.files(ID, **place).items() if name != ".gitattributes"}


def test_one_commit_with_exactly_the_allowed_names(alice, folder):
    done = publish(folder, ID, private=True)
    files = published_files(alice)
    assert set(files) == SENT and set(NAMES) >= SENT
    assert len(alice.log_of(ID)) == 2, "the Hub's first commit and ours"
    assert len(alice.asked("POST", "/commit/")) == 1
    assert done.changed and done.sha == alice.head(ID) and done.url == f"{alice.url}/{ID}"
    for name in SENT - {"architecture.svg", "README.md"}:
        assert files[name] == (folder / name).read_bytes()
    again = searchseg.from_pretrained(ID)
    here = searchseg.from_pretrained(folder).state_dict()
    assert all((tensor == here[name]).all() for name, tensor in again.state_dict().items())


def test_unchanged_content_makes_no_commit_and_asks_nothing(alice, folder):
    first = publish(folder, ID)
    alice.requests.clear()
    second = publish(folder, ID, confirm=lambda plan: pytest.fail("nothing to ask"))
    assert (second.sha, second.changed) == (first.sha, False)
    assert not alice.asked("POST", "/commit/|/preupload/|repos/create") and len(alice.log_of(ID)) == 2


def test_only_what_changed_is_sent(alice, folder, tmp_path):
    publish(folder, ID)
    copy = copied(folder, tmp_path / "net")
    (copy / "history.jsonl").write_text('{"epoch": 2, "seconds": 3.0}\n')
    alice.requests.clear()
    plan = publish(copy, ID).plan
    assert {change.name: change.what for change in plan.pending} == {"history.jsonl": "replace"}
    assert not alice.asked("PUT") and len(alice.log_of(ID)) == 3


def test_a_record_that_the_folder_no_longer_has_leaves_with_the_same_commit(alice, folder, tmp_path):
    publish(folder, ID)
    alice.commit(ID, {"notes.md": b"theirs"})
    copy = copied(folder, tmp_path / "net")
    (copy / "search" / "alpha.jsonl").unlink()
    publish(copy, ID)
    assert set(published_files(alice)) == SENT - {"search/alpha.jsonl"} | {"notes.md"}
    assert len(alice.log_of(ID)) == 4


def copied(folder: Path, target: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(folder)).write_bytes(path.read_bytes())
    return target


def test_text_around_our_section_stays(alice, folder, tmp_path):
    publish(folder, ID)
    card = alice.files(ID)["README.md"].decode()
    edited = card.replace(START, f"Ours, say **we**.\r\n\r\n{START}").replace(
        f"{END}\n", f"{END}\nThanks to Ada.\n"
    )
    edited = edited.replace("license: apache-2.0", "license: mit\nmood: good\ntags_of_ours: [1]")
    edited = edited.replace("- searchseg\n", "- searchseg\n- cats\n").replace("0.875", "0.999")
    alice.commit(ID, {"README.md": edited.encode()})
    copy = copied(folder, tmp_path / "net")
    metrics = json.loads((copy / "metrics.json").read_text()) | {"miou": 0.8888}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    publish(copy, ID)
    now = alice.files(ID)["README.md"].decode()
    assert "Ours, say **we**.\r\n\r\n" + START in now and now.endswith(f"{END}\nThanks to Ada.\n")
    assert "0.8888" in now and "0.999" not in now and now.count(START) == 1
    for line in ("license: mit", "mood: good", "- cats", "pipeline_tag: image-segmentation"):
        assert f"\n{line}\n" in now
    assert publish(copy, ID).changed is False


def test_a_readme_without_marks_is_kept_above_ours(alice, folder):
    alice.create(ID)
    alice.commit(ID, {"README.md": b"---\nlanguage: en\n---\n# My pets\n"})
    publish(folder, ID)
    card = alice.files(ID)["README.md"].decode()
    assert card.index("# My pets") < card.index(START) and "language: en" in card
    assert publish(folder, ID).changed is False


def test_broken_front_matter_and_bytes_on_the_hub_are_told(alice, folder):
    alice.create(ID)
    for text, what in ((b"---\na: [\n---\n", "broken front matter"), (b"\xff\xfe", "UTF-8")):
        alice.commit(ID, {"README.md": text})
        before = snapshot(alice)
        with pytest.raises(PublishError, match=what):
            publish(folder, ID)
        assert snapshot(alice) == before


def test_genotype_only_sends_three_files(alice, folder, tmp_path):
    search = tmp_path / "found"  # the folder of a search: no weights, no scores
    search.mkdir()
    (search / "genotype.json").write_bytes((folder / "genotype.json").read_bytes())
    (search / "checkpoint.pt").write_bytes(b"x")
    publish(search, ID, genotype_only=True)
    assert set(published_files(alice)) == {"genotype.json", "architecture.svg", "README.md"}
    assert publish(search, ID, genotype_only=True).changed is False
    publish(folder, ID)  # weights may come later, and then the genotype alone would not fit them
    with pytest.raises(PublishError, match=r"holds weights.*another repository"):
        publish(search, ID, genotype_only=True)
    with pytest.raises(PublishError, match=r"no genotype.json"):
        publish(tmp_path, ID, genotype_only=True)


def test_branch_tag_and_pull_request(alice, folder, tmp_path):
    publish(folder, ID, tag="v1")
    main = alice.head(ID)
    assert alice.head(ID, "v1") == main
    assert publish(folder, ID, tag="v1").changed is False, "the same tag on the same commit is no fault"
    copy = copied(folder, tmp_path / "net")
    (copy / "history.jsonl").write_text("")
    with pytest.raises(PublishError, match=r"tag v1 .* choose another tag"):
        publish(copy, ID, tag="v1")
    done = publish(copy, ID, branch="try/1", tag="v2")
    assert alice.head(ID) == main and alice.head(ID, "try/1") == alice.head(ID, "v2") == done.sha
    assert done.url.endswith("/tree/try/1")
    assert 'revision="try/1"' in alice.files(ID, "try/1")["README.md"].decode()
    request = publish(copy, ID, create_pr=True)
    assert "/discussions/" in request.url and alice.head(ID) == main and request.changed
    assert publish(folder, ID, create_pr=True).changed is False, "no pull request without changes"
    with pytest.raises(PublishError, match="publish it without --create-pr"):
        publish(folder, "alice/other", create_pr=True)


@pytest.mark.parametrize(
    "repo_id",
    ["../x", "a/b/c", "/etc/passwd", "a" * 300, f"a/{'b' * 300}", "pets", "", "a/..", "a//b", "a/b.git",
     "ä/b", "a/b\n", "https://huggingface.co/a/b", None],
)  # fmt: skip
def test_bad_ids_are_refused_before_any_request(alice, folder, repo_id):
    with pytest.raises(PublishError, match="wanted is user/name"):
        publish(folder, repo_id)
    assert not alice.requests


def test_bad_branches_and_tags_are_refused_before_any_request(alice, folder):
    for name in ("../x", "a..b", "-x", "x/", "refs/pr/1", "a b", "", "a\n", "x" * 300):
        for kind in ("branch", "tag"):
            with pytest.raises(PublishError, match=f"no name for a {kind}"):
                publish(folder, ID, **{kind: name})
    with pytest.raises(PublishError, match="leave out --branch and --tag"):
        publish(folder, ID, create_pr=True, tag="v1")
    assert not alice.requests


def test_an_onnx_file_is_sent_when_it_is_this_model(alice, folder, tmp_path, monkeypatch):
    def check(model, path: Path) -> None:
        if path.read_bytes() != b"this model":
            raise ExportError("it differs")

    monkeypatch.setattr(contents, "check_onnx", check)
    copy = copied(folder, tmp_path / "net")
    (copy / "model.onnx").write_bytes(b"this model")
    publish(copy, ID)
    assert published_files(alice)["model.onnx"] == b"this model"
    assert set(published_files(alice)) == SENT | {"model.onnx"} and publish(copy, ID).changed is False
    (copy / "model.onnx").write_bytes(b"an earlier one")
    before = snapshot(alice)
    with pytest.raises(PublishError, match="it differs"):
        publish(copy, ID)
    assert snapshot(alice) == before
    (copy / "model.onnx").unlink()
    publish(copy, ID)
    assert set(published_files(alice)) == SENT


def damage(copy: Path, name: str) -> None:
    weights, metrics, history = (copy / n for n in ("model.safetensors", "metrics.json", "history.jsonl"))
    text = metrics.read_text()
    if name == "weights":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif name == "metrics of another network":
        metrics.write_text(text.replace('"parameters": ', '"parameters": 1'))
    elif name == "score":
        metrics.write_text(text.replace("0.875", "NaN"))
    elif name == "no protocol":
        metrics.write_text(text.replace('"protocol"', '"p"'))
    elif name == "no metrics":
        metrics.unlink()
    elif name == "link":
        history.unlink()
        history.symlink_to("/etc/hostname")
    elif name == "token":
        history.write_text('{"command": "--token hf_' + "A" * 34 + '"}')


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("weights", "damaged|safetensors"),
        ("metrics of another network", "parameters"),
        ("score", "miou"),
        ("no protocol", "protocol"),
        ("no metrics", "training.evaluate"),
        ("link", "is a link"),
        ("token", "revoke the token"),
    ],
)
def test_a_folder_that_does_not_load_or_leaks_is_not_published(alice, folder, tmp_path, name, what):
    copy = copied(folder, tmp_path / "net")
    damage(copy, name)
    with pytest.raises(PublishError, match=what):
        publish(copy, ID)
    assert not alice.asked("POST", "repos/create|/commit/") and not alice.exists(ID)


def test_a_network_that_does_not_segment_is_not_published(alice, folder, monkeypatch):
    def fails(self, picture):
        raise RuntimeError("no mask comes out")

    monkeypatch.setattr(searchseg.Segmenter, "__call__", fails)
    with pytest.raises(PublishError, match="no mask comes out"):
        publish(folder, ID)
    assert not alice.requests


# ---- faults


@pytest.fixture(scope="module")
def newer(packed, tmp_path_factory) -> Path:
    """The run folder after more training: other weights, history and scores."""
    copy = copied(packed, tmp_path_factory.mktemp("newer") / "net")
    model = searchseg.from_pretrained(copy)
    next(model.parameters()).data.mul_(1.5)
    searchseg.save_pretrained(model, copy)
    (copy / "history.jsonl").write_text('{"epoch": 2, "seconds": 3.0}\n')
    metrics = json.loads((copy / "metrics.json").read_text()) | {"miou": 0.5}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    return copy


@pytest.fixture(scope="module")
def read_once(packed, newer) -> dict[Path, Contents]:
    """Both folders as publish reads them: loading them for every fault would take most of the time."""
    return {folder: read_model(folder) for folder in (packed, newer)}


@pytest.fixture
def older(alice, packed, newer, read_once, monkeypatch) -> Path:
    """The newer folder, and the Hub with the publication of the older one."""
    before = read_once[packed]
    files = {file.name: file.content for file in (*before.files, before.card(ID, None, None))}
    files["model.safetensors"] = files["model.safetensors"].read_bytes()
    alice.create(ID)
    alice.commit(ID, files)
    monkeypatch.setattr(command, "read_model", read_once.__getitem__)
    return newer


def check_old_or_new(hub, copy: Path, old: tuple) -> bool:
    """The Hub shows the old commit, or one more with everything; whether it is the new one."""
    log, files = snapshot(hub)
    if (log, files) == old:
        return False
    assert log[1:] == old[0], "exactly one commit more"
    assert set(files) == set(old[1])
    for name in ("model.safetensors", "history.jsonl", "metrics.json", "config.json", "genotype.json"):
        assert files[name] == (copy / name).read_bytes()
    return True


FAULTS = [
    # method, path, status, in the message, tries
    ("POST", "/commit/", 401, "hf auth login", 1),
    ("POST", "/commit/", 403, "write access to alice", 1),
    ("POST", "/commit/", 404, "check name, branch and token", 1),
    ("POST", "/commit/", 409, "wait a minute", 1),
    ("POST", "/commit/", 412, "somebody else", 2),
    ("POST", "/commit/", 413, "--half", 1),
    ("POST", "/commit/", 429, "try again later", 5),
    ("POST", "/commit/", 500, "fault of its own", 5),
    ("POST", "/commit/", 503, "fault of its own", 5),
    ("POST", "/preupload/", 401, "hf auth login", 1),
    ("POST", "/preupload/", 403, "write access to alice", 1),
    ("POST", "/preupload/", 500, "fault of its own", 6),
    ("POST", "objects/batch", 403, "write access to alice", 1),
    ("POST", "objects/batch", 503, "fault of its own", 6),
    ("PUT", "", 403, "write access to alice", 1),
    ("PUT", "", 500, "fault of its own", 6),
    ("POST", "validate-yaml", 503, "fault of its own", 5),
    ("GET", "/api/models/", 401, "hf auth login", 1),
    ("GET", "/api/models/", 403, "write access to alice", 1),
    ("GET", "/api/models/", 500, "fault of its own", 5),
    ("POST", "/paths-info/", 429, "try again later", 5),
    ("GET", "/resolve/", 503, "fault of its own", 6),
]


@pytest.mark.parametrize(("method", "path", "status", "message", "tries"), FAULTS)
def test_a_lasting_fault_leaves_the_old_commit_and_names_the_cure(
    alice, older, method, path, status, message, tries
):
    old, local = snapshot(alice), digest(older)
    alice.fail(method, path, status, times=None)
    with pytest.raises(PublishError, match=message) as caught:
        publish(older, ID)
    assert caught.value.status == status
    assert "hf_alice" not in str(caught.value)
    assert snapshot(alice) == old and digest(older) == local
    assert tries == len(alice.asked(method, path))
    alice.heal()
    assert publish(older, ID).changed and check_old_or_new(alice, older, old)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("path", ["/commit/", "/preupload/", "objects/batch", "/api/models/alice/pets$"])
def test_a_passing_fault_is_waited_for(alice, older, status, path):
    old = snapshot(alice)
    alice.fail(None, path, status, times=2)
    assert publish(older, ID).changed and check_old_or_new(alice, older, old)


def test_retry_after_is_respected_and_bounded(alice, older):
    old = snapshot(alice)
    alice.fail("POST", "/commit/", 429, times=1, headers={"Retry-After": "37"})
    alice.fail("POST", "/commit/", 503, times=1, headers={"Retry-After": "0"})
    publish(older, ID)
    assert alice.slept == [37.0, remote.WAITS[1]]
    for path in ("/commit/", "/preupload/"):  # the second is the client's own, which would sleep for an hour
        alice.commit(ID, {"history.jsonl": path.encode()})
        alice.requests.clear()
        alice.fail("POST", path, 429, times=None, headers={"Retry-After": "3600"})
        with pytest.raises(PublishError, match="3600 seconds"):
            publish(older, ID)
        assert len(alice.asked("POST", path)) == 1
        alice.heal()
    assert len(alice.log_of(ID)) == len(old[0]) + 3, "one of ours, two of the test"


def test_a_commit_of_somebody_else_meanwhile_is_read_again_once(alice, older):
    alice.before("/commit/", lambda: alice.commit(ID, {"README.md": edited(alice), "notes.md": b"mine"}))
    publish(older, ID)
    files = alice.files(ID)
    assert b"by Bob" in files["README.md"] and files["notes.md"] == b"mine"
    assert files["model.safetensors"] == (older / "model.safetensors").read_bytes()


def edited(hub) -> bytes:
    return hub.files(ID)["README.md"] + b"by Bob\n"


def test_a_lost_answer_is_no_second_commit(alice, older):
    old = snapshot(alice)
    alice.lose_answer("/commit/", times=1)
    done = publish(older, ID)
    assert done.changed and done.sha == alice.head(ID) and check_old_or_new(alice, older, old)


def test_a_lost_answer_is_no_second_pull_request(alice, older):
    alice.lose_answer("/commit/", times=1)
    with pytest.raises(PublishError, match=r"may be there: look at .*/discussions"):
        publish(older, ID, create_pr=True)
    assert len(alice.asked("POST", "/commit/")) == 1


def test_a_lost_answer_of_creation_and_tag(alice, folder):
    alice.lose_answer("repos/create", times=1)
    alice.lose_answer("/tag/", times=1)
    done = publish(folder, ID, tag="v1")
    assert alice.head(ID, "v1") == done.sha == alice.head(ID)


def test_a_tag_that_fails_says_that_the_model_is_there(alice, folder):
    alice.fail("POST", "/tag/", 403, times=None)
    with pytest.raises(PublishError, match=r"is published as commit .* not tagged v1"):
        publish(folder, ID, tag="v1")
    alice.heal()
    assert publish(folder, ID, tag="v1").changed is False and alice.head(ID, "v1") == alice.head(ID)


def cuts(count: int) -> list:
    """Seeded places at which the connection breaks: request, bytes sent, how often, FIN or RST."""
    draw = random.Random(20)
    return [
        (draw.choice(["/preupload/", "objects/batch", "PUT", "/commit/"]),
         draw.choice([0, 1, 100, 2000, 20000]), draw.choice([1, 2, None]), draw.random() < 0.5)
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("cut", cuts(20), ids=str)
def test_an_upload_cut_anywhere_leaves_old_or_new(alice, older, cut):
    path, after, times, reset = cut
    old, local = snapshot(alice), digest(older)
    method = "PUT" if path == "PUT" else "POST"
    alice.cut("" if path == "PUT" else path, after_bytes=after, times=times, method=method, reset=reset)
    try:
        done = publish(older, ID)
        assert check_old_or_new(alice, older, old) and done.sha == alice.head(ID)
    except PublishError as error:
        assert times is None and "no connection" in str(error)
        assert not check_old_or_new(alice, older, old)
    assert digest(older) == local
    alice.heal()
    publish(older, ID)
    assert check_old_or_new(alice, older, old)


def test_a_new_repository_is_old_or_new_too(alice, folder):
    alice.fail("POST", "/commit/", 500, times=None)
    with pytest.raises(PublishError):
        publish(folder, ID)
    assert published_files(alice) == {}
    alice.heal()
    assert publish(folder, ID).changed and set(published_files(alice)) == SENT


def test_who_may_not(alice, folder, monkeypatch):
    for token, what in (("hf_alice_read", 403), ("hf_bob", 403), ("hf_nobody", 401)):
        with pytest.raises(PublishError) as caught:
            publish(folder, ID, token=token)
        assert caught.value.status == what and token not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError, match="hf auth login"):
        publish(folder, ID)
    assert not alice.exists(ID)
    publish(folder, ID, token="hf_alice", private=True)
    with pytest.raises(PublishError, match="hf auth login"):
        publish(folder, ID)


def test_private_never_goes_into_a_public_repository(alice, folder):
    alice.create(ID)
    with pytest.raises(PublishError, match="is public"):
        publish(folder, ID, private=True)
    assert published_files(alice) == {}


def test_offline_is_told(folder, monkeypatch):
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE"):  # as the whole suite is
        publish(folder, ID)


def test_hooks_of_the_client_are_taken_back(alice, folder):
    from huggingface_hub.utils import get_session

    publish(folder, ID)
    assert get_session().event_hooks["response"] == []


# ---- the command


def test_it_shows_what_will_be_sent_and_asks(alice, folder, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "n")
    assert command.main([str(folder), ID]) == 1
    out = capsys.readouterr()
    assert asked and not alice.exists(ID) and "the answer was no" in out.err
    for name in SENT:
        assert re.search(rf"add +[\d,]+  {re.escape(name)}\n", out.out)
    assert "checkpoint" not in out.out and f"{(folder / 'model.safetensors').stat().st_size:,}" in out.out
    monkeypatch.setattr("builtins.input", lambda text: "y")
    assert command.main([str(folder), ID]) == 0
    assert alice.head(ID) in capsys.readouterr().out


def test_nobody_there_to_ask(alice, folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert command.main([str(folder), ID]) == 1
    assert "--yes" in capsys.readouterr().err and not alice.exists(ID)


def test_yes_and_dry_run(alice, folder, capsys):
    assert command.main([str(folder), ID, "--dry-run", "--private"]) == 0
    assert "new, private" in capsys.readouterr().out
    assert not alice.exists(ID) and {method for method, _ in alice.requests} == {"GET"}
    assert command.main([str(folder), ID, "--yes", "--private"]) == 0
    alice.requests.clear()
    assert command.main([str(folder), ID, "--dry-run"]) == 0
    assert not alice.asked("POST", "/commit/|/preupload/|create")


def test_a_failed_push_prints_the_command_to_try_again(alice, folder, capsys):
    alice.fail("POST", "/commit/", 500, times=None)
    words = [str(folder), ID, "--yes", "--tag", "v1"]
    assert command.main(words) == 1
    err = capsys.readouterr().err
    assert f"try again: python -m hub.publish {folder} {ID} --yes --tag v1" in err and "Traceback" not in err


def test_ctrl_c_is_one_sentence(alice, folder, capsys, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "make_plan", stop)
    assert command.main([str(folder), ID, "--yes"]) == 130
    assert "try again" in capsys.readouterr().err


def test_the_token_from_a_variable_is_used_and_never_shown(alice, folder, monkeypatch, capsys, caplog):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("MINE", "hf_alice")
    assert command.main([str(folder), ID, "--yes", "--token-env", "MISSING"]) == 1
    assert "MISSING" in capsys.readouterr().err
    assert command.main([str(folder), ID, "--yes", "--token-env", "MINE"]) == 0
    alice.fail("GET", "/api/models/", 409, message="token hf_alice is odd", times=None)
    assert command.main([str(folder), ID, "--yes", "--token-env", "MINE"]) == 1
    out = capsys.readouterr()
    assert "hf_alice" not in out.out + out.err + caplog.text
    assert not any(b"hf_alice" in data for data in alice.files(ID).values())


def test_run_as_a_command_from_a_shell(hub, folder):
    from hub_fixture import run_with_hub

    hub.fail("POST", "/commit/", 503, times=1)
    words = ["python", "-m", "hub.publish", str(folder), ID, "--yes"]
    done = run_with_hub(hub, words, token="hf_alice", HF_HUB_DISABLE_PROGRESS_BARS="0", TQDM_POSITION="-1")
    assert done.returncode == 0, done.stderr
    assert "trying again in 1 s" in done.stderr and "model.safetensors" in done.stderr, (
        "a bar for the weights"
    )
    assert set(published_files(hub)) == SENT and "hf_alice" not in done.stdout + done.stderr
