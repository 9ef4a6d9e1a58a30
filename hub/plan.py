"""What a publication will change on the Hub: our files beside those that are there."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_url
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from hub.contents import NAMES, README, Contents, File
from hub.remote import PublishError, patiently
from searchseg.pretrained import MAX_TEXT_BYTES, WEIGHTS

ADDED, REPLACED, SAME, REMOVED = "add", "replace", "keep", "remove"


@dataclass(frozen=True)
class Wish:
    """Where to publish and how."""

    repo_id: str
    private: bool = False
    create_pr: bool = False
    branch: str | None = None
    tag: str | None = None


@dataclass(frozen=True)
class Change:
    """One file of the repository: add, replace, keep or remove. `file` is None where it is removed."""

    name: str
    what: str
    size: int
    file: File | None = None


@dataclass(frozen=True)
class Plan:
    """Every file of a publication, and the commit of the repository that it was compared with.

    `parent` is None while the repository does not exist; `private` is what it is or will be.
    """

    wish: Wish
    parent: str | None
    private: bool
    branch_exists: bool
    changes: tuple[Change, ...]

    @property
    def pending(self) -> tuple[Change, ...]:
        """The changes that a commit has to make."""
        return tuple(change for change in self.changes if change.what != SAME)

    def operations(self) -> list[CommitOperationAdd | CommitOperationDelete]:
        """The pending changes for huggingface_hub."""
        return [
            CommitOperationDelete(change.name)
            if change.file is None
            else CommitOperationAdd(change.name, change.file.content)
            for change in self.pending
        ]

    def __str__(self) -> str:
        lines = [f"  {change.what:<8}{change.size:>14,}  {change.name}" for change in self.changes]
        sent = [change.size for change in self.pending if change.file is not None]
        kind = f"{'new, ' if self.parent is None else ''}{'private' if self.private else 'public'}"
        where = f", branch {self.wish.branch}" if self.wish.branch else ""
        where += ", as a pull request" if self.wish.create_pr else ""
        head = f"{self.wish.repo_id} ({kind}){where}: {len(sent)} files to send, {sum(sent):,} bytes"
        return "\n".join([head, *lines])


def make_plan(api: HfApi, contents: Contents, wish: Wish) -> Plan:
    """Compare the contents with the repository; only reads.

    Raises PublishError when the repository must not be written to as wished; errors of requests come through.
    """
    revision = wish.branch if wish.branch != "main" else None
    try:
        info = patiently(lambda: api.model_info(wish.repo_id))
    except RepositoryNotFoundError as error:
        if error.response.status_code != 404:  # 401: nobody is logged in, and nobody can create it
            raise
        if wish.create_pr:
            raise PublishError(
                f"{wish.repo_id} does not exist yet: publish it without --create-pr", 404
            ) from error
        card = contents.card(wish.repo_id, revision, None)
        added = tuple(Change(file.name, ADDED, file.size, file) for file in (*contents.files, card))
        return Plan(wish, None, wish.private, False, added)
    if wish.private and not info.private:
        raise PublishError(f"{wish.repo_id} is public: make it private in its settings, or name another one")
    parent, branch_exists = info.sha, True
    if revision is not None:
        try:
            parent = patiently(lambda: api.model_info(wish.repo_id, revision=revision)).sha
        except RevisionNotFoundError:
            branch_exists = False
    there = _files(api, wish.repo_id, parent)
    if contents.model is None and WEIGHTS in there:
        raise PublishError(
            f"{wish.repo_id} holds weights, which another genotype would no longer fit: "
            "name another repository"
        )
    card = contents.card(wish.repo_id, revision, _readme(api, wish.repo_id, parent, there))
    changes = _compare((*contents.files, card), there, keep=contents.model is None)
    plan = Plan(wish, parent, bool(info.private), branch_exists, changes)
    _check_tag(api, plan)
    return plan


def _files(api: HfApi, repo_id: str, commit: str) -> dict[str, RepoFile]:
    """Those of our names that the repository has at `commit`."""
    entries = patiently(lambda: api.get_paths_info(repo_id, list(NAMES), revision=commit))
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _readme(api: HfApi, repo_id: str, commit: str, there: dict[str, RepoFile]) -> str | None:
    if README not in there:
        return None
    if there[README].size > MAX_TEXT_BYTES:
        raise PublishError(
            f"README.md of {repo_id} is larger than {MAX_TEXT_BYTES} bytes: shorten it on the Hub"
        )
    url = hf_hub_url(repo_id, README, revision=commit, endpoint=api.endpoint)
    response = http_backoff("GET", url, headers=build_hf_headers(token=api.token))
    hf_raise_for_status(response)
    try:
        return response.content.decode()
    except UnicodeDecodeError as error:
        raise PublishError(f"README.md of {repo_id} is not UTF-8: save it again on the Hub") from error


def _compare(files: tuple[File, ...], there: dict[str, RepoFile], keep: bool) -> tuple[Change, ...]:
    """A change for every file of ours, and unless `keep` one for every old record that we no longer have.

    A record of another network beside this one would be false.
    """
    changes = [Change(file.name, _what(file, there.get(file.name)), file.size, file) for file in files]
    old = [name for name in NAMES if name in there and name not in {file.name for file in files}]
    return (*changes, *(Change(name, REMOVED, there[name].size) for name in old if not keep))


def _what(file: File, entry: RepoFile | None) -> str:
    if entry is None:
        return ADDED
    equal = file.sha256() == entry.lfs.sha256 if entry.lfs else file.git_id() == entry.blob_id
    return SAME if equal else REPLACED


def _check_tag(api: HfApi, plan: Plan) -> None:
    tag, repo_id = plan.wish.tag, plan.wish.repo_id
    if tag is None:
        return
    taken = tag_commit(api, repo_id, tag)
    if taken is not None and (plan.pending or taken != plan.parent):
        raise PublishError(f"tag {tag} of {repo_id} stands at commit {taken[:7]} already: choose another tag")


def tag_commit(api: HfApi, repo_id: str, tag: str) -> str | None:
    """The commit that a tag names, None when there is no such tag."""
    refs = patiently(lambda: api.list_repo_refs(repo_id))
    return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)
