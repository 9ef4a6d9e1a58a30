"""The files of one commit of a Hub repository: found in the Hub's cache, or fetched, bounded and checked.

A name is resolved to its commit once, and every file then comes from that commit. `hf_hub_download` is not
used: it waits as long as a server's Retry-After says, sees a slow server only every 10 MB, has no second try
after a 500 within a download, and a file is in its cache before anybody has compared its hash. The layout of
the cache (refs, snapshots, blobs named by their hash) is the Hub's, so each finds what the other has stored.
huggingface_hub is imported where a request is made: that takes 0.3 s, which a start from the cache saves.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from searchseg.faults import BrokenDownloadError, DownloadError, patiently

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

SECONDS, SLOWEST = 60.0, 20_000  # a file of n bytes has 60 s + n / (20 kB/s), all tries together

PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
REPOSITORY = re.compile(rf"(?!.*(?:--|\.\.|\.git$))(?:{PART}/)?{PART}")
BRANCH = r"[\w+@%#=-][\w.+@%#=-]*"
REVISION = re.compile(rf"(?=.{{1,200}}$)(?!.*\.\.){BRANCH}(?:/{BRANCH})*")
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
NOT_ASKED = "(HF_HUB_OFFLINE=1 or local_files_only=True): load it once with the network"


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository. `folder` holds those of its files that were fetched."""

    repository: str
    revision: str
    commit: str
    token: str | None = field(default=None, repr=False)
    offline: bool = False

    @property
    def folder(self) -> Path:
        """Where the cache keeps the files of this commit; it need not exist yet."""
        return _cache(self.repository) / "snapshots" / self.commit

    def fetch(self, name: str, most_bytes: int) -> None:
        """Make `folder / name` a whole file; no request when it is one already.

        Whole is a file with the hash that its blob is named by; any other is fetched again. Raises
        DownloadError: not in the cache while offline, above `most_bytes`, refused, broken, or too slow.
        """
        path = self.folder / name
        cached = os.path.isfile(path)
        blob = os.path.basename(os.readlink(path)) if os.path.islink(path) else ""
        if cached and _agrees(path, blob) is not False:
            return
        if self.offline:
            raise DownloadError(
                f"{name} of {self.repository} at {self.commit} is {'damaged' if cached else 'missing: not'} "
                f"in the cache, and the Hub is not asked {NOT_ASKED}"
            )
        began = time.monotonic()
        patiently(self.repository, lambda: self._fetch(name, most_bytes, began))

    def remember(self) -> None:
        """Let `revision` mean this commit while offline; to be called when all files are there."""
        path = _cache(self.repository) / "refs" / self.revision
        if self.offline or self.revision == self.commit or _read(path) == self.commit:
            return
        with contextlib.suppress(OSError):  # a cache that cannot be written still serves what it holds
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
            new.write_text(self.commit)
            os.replace(new, path)

    def _fetch(self, name: str, most_bytes: int, began: float) -> None:
        found = _ask(self.repository, self.commit, name, self.token)
        if found.commit_hash != self.commit:
            raise DownloadError(
                f"the Hub gives {name} of {self.repository} from commit {found.commit_hash!r:.50}, not from "
                f"{self.commit}: check HF_ENDPOINT, and the revision if you gave one"
            )
        if found.size is not None and found.size > most_bytes:
            raise DownloadError(_too_large(name, found.size, most_bytes))
        blobs, etag = _cache(self.repository) / "blobs", found.etag or ""
        blobs.mkdir(parents=True, exist_ok=True)
        if _agrees(blobs / etag, etag):  # another commit has the same file
            return self._link(blobs / etag, name)
        partial = blobs / f"{uuid.uuid4().hex}.incomplete"
        try:
            self._receive(name, partial, found.size, most_bytes, began)
            if whole := _agrees(partial, etag):
                os.replace(partial, blobs / etag)
                return self._link(blobs / etag, name)
            if whole is False and SHA256.fullmatch(etag):
                raise BrokenDownloadError(
                    f"{name} of {self.repository} came damaged: its sha256 is not {etag[:12]}..., which the "
                    "Hub announced: try again later; if it stays, push the model again"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            os.replace(partial, self.folder / name)
        finally:
            partial.unlink(missing_ok=True)

    def _receive(self, name: str, partial: Path, size: int | None, most_bytes: int, began: float) -> None:
        """Write to `partial` what the server sends: no more than it announced, and not beyond the time."""
        from huggingface_hub import constants, get_session, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(self.repository, name, revision=self.commit)
        headers = {**build_hf_headers(token=self.token), "Accept-Encoding": "identity"}
        pause, got, most = constants.HF_HUB_DOWNLOAD_TIMEOUT, 0, most_bytes if size is None else size
        with get_session().stream("GET", url, headers=headers, timeout=pause) as response:
            if response.status_code != 200:
                raise HfHubHTTPError(f"{response.status_code} for {url}", response=response)
            with open(partial, "xb") as file:
                for chunk in response.iter_bytes():
                    got += len(chunk)
                    if got > most:
                        break
                    if time.monotonic() - began > SECONDS + most / SLOWEST:
                        raise DownloadError(
                            f"{name} of {self.repository} comes too slowly: {got} of {most} bytes, and the "
                            "time is up; try again later or over another connection"
                        )
                    file.write(chunk)
        if size is None and got > most_bytes:
            raise DownloadError(_too_large(name, got, most_bytes))
        if size is not None and got != size:
            raise BrokenDownloadError(
                f"{name} of {self.repository} came with {got} bytes{' or more' if got > size else ''}, "
                f"announced were {size}: try again later; if it stays, push the model again"
            )

    def _link(self, blob: Path, name: str) -> None:
        """Let the snapshot show a blob under its name in the repository."""
        self.folder.mkdir(parents=True, exist_ok=True)
        link = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            link.symlink_to(os.path.relpath(blob, self.folder))
            os.replace(link, self.folder / name)
        except OSError:  # no links here, as on Windows: the file itself takes the place of its link
            link.unlink(missing_ok=True)
            os.replace(blob, self.folder / name)


def find_snapshot(
    repository: str,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    name: str = "config.json",
) -> Snapshot:
    """The commit that `revision` (a branch, tag or commit; by default main) names, with one request at most.

    A revision of 40 hexadecimal digits is a commit already. `name` is a file that the commit must hold, the
    one that the Hub is asked about. Raises DownloadError: an impossible name (before any request), no such
    repository, revision or file, no access, no network, or nothing in the cache while offline.
    """
    from huggingface_hub import constants

    _check(repository, revision, token)
    revision = revision or "main"
    offline = offline or constants.is_offline_mode()
    if COMMIT.fullmatch(revision.lower()):
        return Snapshot(repository, revision.lower(), revision.lower(), token, offline)
    if offline:
        commit = _read(_cache(repository) / "refs" / revision)
        if not COMMIT.fullmatch(commit):
            raise DownloadError(
                f"{repository!r} is no folder here, its revision {revision!r} is not in the cache, and the "
                f"Hub cannot be reached {NOT_ASKED}"
            )
    else:
        commit = patiently(repository, lambda: _ask(repository, revision, name, token)).commit_hash or ""
        if not COMMIT.fullmatch(commit):
            raise DownloadError(
                f"{constants.ENDPOINT} does not answer as a Hub, it names no commit of {repository}: check "
                "HF_ENDPOINT, and whether a proxy stands between"
            )
    return Snapshot(repository, revision, commit, token, offline)


def _check(repository: str, revision: str | None, token: str | None) -> None:
    """Refuse names before they become a path or an address."""
    if not REPOSITORY.fullmatch(repository):
        raise DownloadError(f"{repository!r:.120} is neither a folder nor a Hub id such as user/name")
    if revision is not None and not REVISION.fullmatch(revision):
        raise DownloadError(
            f"revision {revision!r:.120} names no branch, tag or commit: not in the cache, not on the Hub; "
            "leave revision out for main"
        )
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        raise DownloadError(
            "token is empty or holds a character that no token has; copy it from the Hub again"
        )


def _cache(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _read(path: Path) -> str:
    """The commit in a file of refs, or nothing."""
    try:
        return path.read_bytes()[:100].decode("ascii", "replace").strip()
    except OSError:
        return ""


def _agrees(path: Path, etag: str) -> bool | None:
    """Whether the file has the hash `etag`: sha256 (LFS) or that of a git blob; None where it is no hash."""
    if not COMMIT.fullmatch(etag) and not SHA256.fullmatch(etag):
        return None
    try:
        with open(path, "rb") as file:
            start = b"blob %d\0" % os.fstat(file.fileno()).st_size
            digest = hashlib.sha256() if len(etag) == 64 else hashlib.sha1(start, usedforsecurity=False)
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return False
    return digest.hexdigest() == etag


def _too_large(name: str, size: int, most_bytes: int) -> str:
    return (
        f"{name} has {size} bytes, at most {most_bytes} are wanted: this is not a searchseg model, or its "
        "weights and config.json do not belong together"
    )


def _ask(repository: str, revision: str, name: str, token: str | None) -> HfFileMetadata:
    """Commit, size and hash of a file, by one HEAD request."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repository, name, revision=revision)
    return get_hf_file_metadata(url, token=token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
