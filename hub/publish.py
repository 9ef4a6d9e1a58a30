"""Publish a run folder, or its genotype alone, as a model repository on the Hugging Face Hub.

The network is loaded strictly and segments a picture first. Then everything goes into one commit: the Hub
shows either what it had or all of the new. The folder itself is only read. What somebody wrote around our
section of the card on the Hub stays.

examples:
  python -m hub.publish hub/models/searchnet-pet me/pets
  python -m hub.publish runs/net me/pets --private --tag v1 --yes
  python -m hub.publish runs/found me/pets-genotype --genotype-only
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

import searchseg
from hub.commit import Published, page, perform
from hub.contents import read_genotype, read_model
from hub.metadata import is_hub_id
from hub.plan import Plan, Wish, make_plan
from hub.readme import ReadmeError
from hub.remote import PublishError, bounded_waits, explained
from searchseg.pretrained import PretrainedError

__all__ = ["Plan", "PublishError", "Published", "publish"]
_REFERENCE = re.compile(r"(?!.*\.\.)(?!.*//)(?!refs/)[A-Za-z0-9][A-Za-z0-9._/-]{0,99}(?<![./])")


def publish(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    branch: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    genotype_only: bool = False,
    token: str | None = None,
    confirm: Callable[[Plan], bool] | None = None,
) -> Published:
    """Publish `folder` as the model `repo_id` ("user/name") in one commit; the folder is only read.

    `confirm` is asked before anything is written on the Hub, unless nothing has changed; without `token` the
    one that huggingface_hub finds is used. Raises PublishError with the cure; the Hub then has either what it
    had or all of the new.
    """
    wish = Wish(repo_id, private, create_pr, branch, tag)
    _check(wish)
    try:
        contents = (read_genotype if genotype_only else read_model)(Path(folder))
        api = HfApi(token=token)
        with bounded_waits():
            plan = make_plan(api, contents, wish)
            if dry_run:
                return Published(page(api, wish), plan.parent, False, plan)
            if plan.pending and confirm is not None and not confirm(plan):
                raise PublishError("nothing was sent: the answer was no")
            return perform(api, contents, plan)
    except PublishError:
        raise
    except (PretrainedError, searchseg.GenotypeError, ReadmeError) as error:
        raise PublishError(f"{repo_id} was not published: {error}") from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise explained(error, repo_id) from error


def _check(wish: Wish) -> None:
    """Refuse names and combinations that cannot be right before any request."""
    if not is_hub_id(wish.repo_id):
        raise PublishError(
            f"{wish.repo_id!r:.120} is no Hub id: wanted is user/name of letters, digits, '-', '_' and '.', "
            "at most 96 characters"
        )
    for kind, name in (("branch", wish.branch), ("tag", wish.tag)):
        if name is not None and not _REFERENCE.fullmatch(name):
            raise PublishError(
                f"{name!r:.120} is no name for a {kind}: wanted are letters, digits, '-', '_', '.' and '/'"
            )
    if wish.create_pr and (wish.branch or wish.tag):
        raise PublishError("a pull request has no branch or tag of its own: leave out --branch and --tag")


def _ask(plan: Plan) -> bool:
    print(plan)
    try:
        return input("publish? [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError as error:
        raise PublishError("nothing was sent: nobody is there to ask, say --yes to go on") from error


def _show(plan: Plan) -> bool:
    print(plan)
    return True


def _token(variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise PublishError(
            f"--token-env: the environment has no {variable}, or it is empty: set it to a token"
        )
    return token


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m hub.publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="run folder with a model and metrics.json")
    parser.add_argument("id", metavar="user/name", help="repository on the Hub, made if it does not exist")
    parser.add_argument("--private", action="store_true", help="only for those who have access")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of a commit")
    parser.add_argument("--branch", metavar="B", help="commit to this branch, made if it does not exist")
    parser.add_argument("--tag", metavar="T", help="name the commit, for from_pretrained(..., revision=T)")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent, and send nothing")
    parser.add_argument("--genotype-only", action="store_true", help="genotype, drawing and card, no weights")
    parser.add_argument(
        "--token-env", nargs="?", const="HF_TOKEN", metavar="VARIABLE",
        help="take the token from this environment variable (HF_TOKEN) instead of the one logged in with",
    )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; 0 after success, 1 after a fault, 130 after Ctrl-C."""
    args = _parser().parse_args(argv)
    again = shlex.join(["python", "-m", "hub.publish", *(sys.argv[1:] if argv is None else argv)])
    try:
        done = publish(
            args.folder, args.id, private=args.private, create_pr=args.create_pr, branch=args.branch,
            tag=args.tag, dry_run=args.dry_run, genotype_only=args.genotype_only,
            token=_token(args.token_env), confirm=_show if args.yes else _ask,
        )  # fmt: skip
    except PublishError as error:
        print(f"error: {error}\n{args.folder} is as it was; to try again: {again}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; {args.folder} is as it was; to try again: {again}", file=sys.stderr)
        return 130
    if args.dry_run:
        print(f"{done.plan}\nnothing was sent")
    else:
        print(f"{'published' if done.changed else 'nothing has changed'}: {done.url} at {done.sha}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
