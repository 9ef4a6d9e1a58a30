"""What programs are told about the endpoints: the docstrings, beside every parameter and result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradio.utils import get_function_description


def documented(run: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Put the lines "name: words" of a docstring's Parameters and Returns on the page "Use via API".

    gradio itself shows its own words for a component there, such as "a local filepath or publicly available
    URL", which is not so here. Raises ValueError when there is not a line for each.
    """
    _, parameters, returns = get_function_description(run)
    told = [words for name, words in parameters.items() if name != "self"] + list(returns)
    for component, words in zip([*inputs, *outputs], told, strict=True):
        _describe(component, words)


def _describe(component: Any, words: str) -> None:
    kind = component.api_info
    component.api_info = lambda: {**kind(), "additional_description": words, "description": words}
