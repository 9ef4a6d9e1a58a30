"""The options of a search method, and the SearchMethod that they describe."""

from __future__ import annotations

import argparse
import dataclasses

from searchseg.task import TaskError
from training.budget import parse_budget
from training.monitor import RULES
from training.presets import SearchMethod

METHODS = ("darts", "random", "random-shared", "reinforce")
REGULARISERS = ("none", "auxiliary-skip", "beta")


def add_method_options(top: argparse.ArgumentParser) -> None:
    """Method, budget of the derived network, and collapse monitor."""
    how = top.add_argument_group("method")
    how.add_argument("--method", choices=METHODS, default="darts", help="how the architecture is found")
    how.add_argument("--order", type=int, choices=(1, 2), default=1, help="darts: of the gradient of alpha")
    how.add_argument("--partial", type=int, default=1, metavar="K", help="darts: 1/K of the channels search")
    how.add_argument(
        "--regularise", choices=REGULARISERS, default="none", help="darts: against cells that are all skips"
    )
    how.add_argument("--max-skips", type=int, help="darts: most skips a cell in the derived network")
    how.add_argument(
        "--derive", choices=("alpha", "perturbation"), default="alpha", help="darts: what decides"
    )
    how.add_argument("--samples", type=int, default=64, help="random methods: candidates drawn in the end")
    how.add_argument("--within", type=float, help="random: share that --params may be missed by (0.15)")
    how.add_argument("--params", help="random: parameters that a drawn network should have, such as 1.5M")
    how.add_argument("--hold-out", type=float, default=0.0, help="share of the rows never seen, see compare")
    cost = top.add_argument_group("budget of the derived network").add_mutually_exclusive_group()
    cost.add_argument("--max-macs", help="multiply-accumulates a picture, such as 2G")
    cost.add_argument("--max-params", help="parameters, such as 1M")
    cost.add_argument("--max-latency", help="time a picture, such as 20ms, measured on --device")
    watch = top.add_argument_group("collapse monitor")
    watch.add_argument(
        "--monitor-every", type=int, default=0, metavar="N", help="epochs between Hessians of alpha; 0: never"
    )
    watch.add_argument("--early-stop", choices=RULES, default="none", help="rule that ends the search")


def method_of(args: argparse.Namespace) -> SearchMethod:
    """The search method that the options describe; TaskError when they contradict one another."""
    budgets = {kind: getattr(args, f"max_{kind}") for kind in ("macs", "params", "latency")}
    kind, text = next(((k, v) for k, v in budgets.items() if v), (None, None))
    try:
        limit = parse_budget(text, kind) if text else None
    except ValueError as error:
        raise TaskError(str(error)) from error
    method = SearchMethod(
        args.method, args.order, args.partial, args.regularise, args.max_skips, kind, limit,
        args.monitor_every or (2 if args.early_stop == "eigenvalue" else 0), args.early_stop, args.derive,
        args.samples,
    )  # fmt: skip
    plain = dataclasses.replace(SearchMethod(args.method), samples=args.samples)
    if args.method != "darts" and method != plain:
        raise TaskError(f"--method {args.method} takes --samples alone; the other options belong to darts")
    if args.method != "random" and (args.params is not None or args.within is not None):
        raise TaskError("--params and --within belong to --method random; a search takes --max-params")
    if args.partial < 1 or args.samples < 1:
        raise TaskError(f"--partial and --samples must be 1 or more, got {args.partial}, {args.samples}")
    if min(args.max_skips or 0, args.monitor_every) < 0:
        raise TaskError(
            f"--max-skips and --monitor-every cannot be negative, got {args.max_skips}, {args.monitor_every}"
        )
    return method


def method_name(method: SearchMethod) -> str:
    """The method in a few words, such as "darts-first-order partial-4 auxiliary-skip"."""
    if method.name != "darts":
        return method.name
    words = [
        f"darts-{'first' if method.order == 1 else 'second'}-order",
        f"partial-{method.partial}" if method.partial > 1 else "",
        method.regularise if method.regularise != "none" else "",
        f"max-{method.max_skips}-skips" if method.max_skips is not None else "",
        f"max-{method.budget}-{method.limit:g}" if method.budget else "",
        f"derive-{method.derive}" if method.derive != "alpha" else "",
    ]
    return " ".join(filter(None, words))
