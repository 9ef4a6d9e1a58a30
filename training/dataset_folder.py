"""A `datasets` repository as a folder: parquet files with checksums, a card, and the way to the Hub."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from hub.remote import bounded_waits, patiently

ROWS_PER_GROUP = 100  # held in memory at once, and read at once for one row: Pet 11 MB, CamVid 30 MB


class OutputError(ValueError):
    """The folder, or the repository on the Hub, must not be written to."""


def write_parquet(target: Path | IO[bytes], rows: Iterator[dict[str, object]], schema: pa.Schema) -> None:
    """Write rows as `datasets` does, a group at a time and with a checksum per page.

    Not with Dataset.from_generator: it keeps a second copy in the user's cache, returns that copy when
    the folder's content has changed, and drops an image's bytes when the current folder has a file of its
    name.
    """
    options = {"compression": "none", "use_dictionary": False}  # JPEG and PNG do not get smaller
    with pq.ParquetWriter(
        target, schema, write_page_checksum=True, write_page_index=True, **options
    ) as writer:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def table(rows: Iterable[Iterable[object]]) -> str:
    """Rows of a table in a card, without its head."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def hub_id(text: str) -> str:
    """A command-line value that can be the id of a repository."""
    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise argparse.ArgumentTypeError(f"{error} Wanted is NAME or OWNER/NAME.") from error
    return text


def push(
    folder: Path, repo_id: str, private: bool, files: Sequence[str] | None = None, mark: str | None = None
) -> str:
    """Upload a finished folder, trying again while the Hub is overloaded; the repository's address.

    files: patterns of what to upload, by default all. mark: a text in the card of every repository that may
    be replaced; its older parquet files go. Raises OutputError, OSError and HTTPError.
    """
    api = HfApi()
    with bounded_waits():
        new = {"repo_type": "dataset", "private": private or None, "exist_ok": True}
        repo = patiently(lambda: api.create_repo(repo_id, **new))
        if private and not patiently(lambda: api.dataset_info(repo.repo_id)).private:
            # create_repo leaves a public repository public
            raise OutputError(f"{repo} is public: make it private in its settings, or name another one")
        if mark is not None:
            _refuse_foreign(api, repo.repo_id, mark)
        patiently(
            lambda: api.upload_folder(
                repo_id=repo.repo_id, repo_type="dataset", folder_path=folder, allow_patterns=files,
                delete_patterns=None if mark is None else "data/*.parquet", commit_message="Add the dataset",
            )
        )  # fmt: skip
    return str(repo)


def _refuse_foreign(api: HfApi, repo_id: str, mark: str) -> None:
    files = patiently(lambda: api.list_repo_files(repo_id, repo_type="dataset"))
    if set(files) <= {".gitattributes"}:
        return
    try:
        card = patiently(lambda: api.hf_hub_download(repo_id, "README.md", repo_type="dataset"))
        ours = mark in Path(card).read_text(encoding="utf-8", errors="replace")
    except EntryNotFoundError:
        ours = False
    if not ours:
        raise OutputError(f"{repo_id} holds another dataset, which is not replaced: name another one")
