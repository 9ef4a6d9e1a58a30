"""README.md as two hands write it: our section between two marks, and everything around it that is
somebody's own.

The front matter is shared: our entries stand in it, entries that only the other hand wrote stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from searchseg.pretrained import ARCHITECTURES

START, END = "<!-- searchseg: start -->", "<!-- searchseg: end -->"
# from the start mark that is nearest to an end mark: a stray one never swallows the text after it
_SECTION = re.compile(f"{re.escape(START)}(?:(?!{re.escape(START)}).)*?{re.escape(END)}", re.DOTALL)
_LICENSE = ("license", "license_name", "license_link")
_OUR_TAGS = {*ARCHITECTURES, "genotype"}  # of these only the present one stays


class ReadmeError(ValueError):
    """A README.md that cannot be read or joined; the message names the fault and the cure."""


def has_marks(text: str) -> bool:
    """Whether `text` has a section of ours."""
    return _SECTION.search(text) is not None


def compose(front: Mapping[str, Any], section: str, base: str | None = None) -> str:
    """README.md with our front matter and section; of `base`, an earlier README.md, everything else stays.

    Without a section of ours in `base` ours goes below its text. Composing twice gives the same text. Raises
    ReadmeError when the front matter of `base` cannot be read.
    """
    theirs, body = split(base or "")
    marked = f"{START}\n\n{_without_marks(section).strip()}\n\n{END}"
    if has_marks(body):
        body = _SECTION.sub(lambda _: marked, body, count=1)
    elif body.strip():
        body = f"{body.rstrip()}\n\n{marked}\n"
    else:
        body = f"\n{marked}\n"
    lines = yaml.dump(merge(front, theirs), sort_keys=False, allow_unicode=True)
    return f"---\n{lines}---\n{body}"


def split(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and the text after it; ReadmeError when the front matter is no YAML object."""
    text = text.removeprefix("\ufeff")
    found = REGEX_YAML_BLOCK.search(text)
    if not found:
        return {}, f"\n{text}" if text else ""
    try:
        front = yaml.safe_load(found.group(2))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        where = " ".join(str(error).split())
        raise ReadmeError(
            f"README.md has broken front matter ({where:.200}): mend the lines between ---"
        ) from error
    if not isinstance(front, dict | None):
        raise ReadmeError(
            f"README.md has front matter that is a {type(front).__name__}: wanted are lines key: value"
        )
    return front or {}, text[found.end() :]


def merge(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Ours over theirs. Their further entries and tags stay, and so does a licence that they chose."""
    merged = {**ours, **{key: value for key, value in theirs.items() if key not in ours}}
    if theirs.get("license"):
        merged.update({key: theirs[key] for key in _LICENSE if key in theirs})
    tags = theirs.get("tags")
    if isinstance(tags, list):
        further = [tag for tag in tags if isinstance(tag, str) and tag not in _OUR_TAGS]
        merged["tags"] = list(dict.fromkeys([*ours.get("tags", ()), *further]))
    return merged


def _without_marks(section: str) -> str:
    """Our marks inside the section, say in a name from somebody's genotype.json, would end it too early."""
    return section.replace("<!--", "&lt;!--")
