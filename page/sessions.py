"""Sessions that cost next to nothing: for gradio every call of the API is a new one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gradio import state_holder


class Session(state_holder.SessionState):
    """A session that describes a component when its value changes, not all of them at its beginning.

    gradio describes them all for links to a state of the page, which this page does not offer: 12 ms of the
    loop that serves every client, and 160 KB, a call.
    """

    def __init__(self, blocks: Any) -> None:
        try:
            super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks={}))  # type: ignore[arg-type]
        except AttributeError:  # another gradio looks at more of the page: slower, but right
            super().__init__(blocks)


def use() -> None:
    """Let every page of this process keep its sessions so."""
    state_holder.SessionState = Session  # type: ignore[misc]
