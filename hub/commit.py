"""Carry out a plan on the Hub: repository and branch where they are missing, one commit, and a tag."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError

import searchseg
from hub.contents import Contents
from hub.plan import Plan, Wish, make_plan, tag_commit
from hub.remote import NOTHING_HAPPENED, TRANSIENT, PublishError, explained, patiently


@dataclass(frozen=True)
class Published:
    """What a publication came to.

    url: the page of the model, branch or pull request; sha: the commit that holds it, None after a dry run
    on a repository that does not exist; changed: whether a commit was made; plan: the files.
    """

    url: str
    sha: str | None
    changed: bool
    plan: Plan


def perform(api: HfApi, contents: Contents, plan: Plan) -> Published:
    """Create what is missing, commit, and tag.

    Errors of requests come through; PublishError where the outcome is in doubt, or only the tag is missing.
    """
    wish = plan.wish
    if plan.parent is None:
        patiently(lambda: api.create_repo(wish.repo_id, private=wish.private or None, exist_ok=True))
        plan = make_plan(api, contents, wish)
    if not plan.branch_exists:
        patiently(
            lambda: api.create_branch(wish.repo_id, branch=wish.branch, revision=plan.parent, exist_ok=True)
        )
    published = _commit(api, contents, plan)
    if wish.tag is not None:
        _tag(api, wish, published)
    return published


def _commit(api: HfApi, contents: Contents, plan: Plan) -> Published:
    """One commit on the one that was looked at. When that is no longer the last, look again, once."""
    wish = plan.wish
    try:
        return _commit_once(api, plan)
    except HfHubHTTPError as error:
        if error.response.status_code != 412:
            raise
    plan = make_plan(api, contents, wish)
    if not plan.pending:  # our commit was made, and only its answer was lost
        return Published(page(api, wish), plan.parent, True, plan)
    return _commit_once(api, plan)


def _commit_once(api: HfApi, plan: Plan) -> Published:
    wish = plan.wish
    if not plan.pending:
        return Published(page(api, wish), plan.parent, False, plan)
    operations = plan.operations()  # the same ones for every try: they know what has been uploaded
    try:
        info = patiently(
            lambda: api.create_commit(
                wish.repo_id,
                operations,
                commit_message="Publish with searchseg",
                commit_description=f"searchseg {searchseg.__version__}, python -m hub.publish",
                revision=wish.branch,
                create_pr=wish.create_pr,
                parent_commit=plan.parent,
            ),
            repeatable=not wish.create_pr,
        )
    except HTTPError as error:
        if wish.create_pr and _perhaps_done(error):
            raise PublishError(
                "the Hub did not confirm it, and the pull request may be there: look at "
                f"{page(api, wish)}/discussions before trying again"
            ) from error
        raise
    return Published(info.pr_url or page(api, wish), info.oid, True, plan)


def _perhaps_done(error: HTTPError) -> bool:
    """Whether the Hub may have made the commit although there is an error."""
    if not isinstance(error, HfHubHTTPError):
        return True
    status = error.response.status_code
    asked_to_commit = "/commit/" in str(error.response.request.url)
    return asked_to_commit and status in TRANSIENT and status not in NOTHING_HAPPENED


def _tag(api: HfApi, wish: Wish, published: Published) -> None:
    try:
        if tag_commit(api, wish.repo_id, wish.tag) != published.sha:
            patiently(lambda: api.create_tag(wish.repo_id, tag=wish.tag, revision=published.sha))
    except (HTTPError, OSError, ValueError) as error:
        if _taken_by_us(api, wish, published):
            return
        fault = explained(error, wish.repo_id)
        raise PublishError(
            f"the model is published as commit {published.sha}, but not tagged {wish.tag}: {fault}",
            fault.status,
        ) from error


def _taken_by_us(api: HfApi, wish: Wish, published: Published) -> bool:
    """Whether the tag is there after all: the answer to a first try may have been lost."""
    try:
        return tag_commit(api, wish.repo_id, wish.tag) == published.sha
    except (HTTPError, OSError, ValueError):
        return False


def page(api: HfApi, wish: Wish) -> str:
    """The address of the model, or of the branch that was asked for."""
    return f"{api.endpoint}/{wish.repo_id}" + (f"/tree/{wish.branch}" if wish.branch else "")
