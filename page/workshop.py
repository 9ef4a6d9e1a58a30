"""The tab that searches a network on a person's data, trains it, and publishes it."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

import searchseg
from hub.metadata import is_hub_id
from hub.publish import PublishError, publish
from page.curves import draw_curves
from page.data import SHAPES, DataError, draw_shapes, unpack
from page.shelf import read_metrics
from page.training_run import BUSY, ROOT, Progress, RunError, TrainingRun, busy, fcntl
from page.uploads import only_uploaded_files, refuse
from page.views import quiet, table, warning
from searchseg.drawing import draw_alpha

SHAPES_CHOICE, HUB_CHOICE, ZIP_CHOICE = "Drawn shapes (a first try)", "Hub dataset", "Zip of my own"
PRESETS = [("smoke: seconds, to see it work", "smoke"), ("lite: small network", "lite"),
           ("paper: large, wants a GPU", "paper")]  # fmt: skip
MOST_MINUTES = 60 * 24
REFRESH_SECONDS = 3
LOCAL_HOSTS = ("", "127.0.0.1", "localhost", "::1")
NO_RUN = quiet("No run yet. Choose data and a preset, then start one.")
WORDS = {
    "running": "is running", "stopping": "is stopping after its present step", "finished": "is finished",
    "stopped": "is stopped: continue it whenever you like", "failed": "has failed, its last words are below",
    "interrupted": "was interrupted: continue it",
}  # fmt: skip
_CLASS = re.compile(r"[^\x00-\x1f\x7f]{1,60}")
_COLUMN = re.compile(r"[^\x00-\x1f]{1,100}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")


def allowed() -> bool:
    """Whether this page trains: on this machine's own address, or where SEARCHSEG_ALLOW_TRAINING says so."""
    said = os.environ.get("SEARCHSEG_ALLOW_TRAINING", "").strip().lower()
    if fcntl is None or not (ROOT / "training").is_dir() or said in ("0", "false", "no", "off"):
        return False
    if said in ("1", "true", "yes", "on"):
        return True
    return "SPACE_ID" not in os.environ and os.environ.get("GRADIO_SERVER_NAME", "") in LOCAL_HOSTS


@dataclass(frozen=True)
class WorkshopTab:
    """What happens when something on the tab is used."""

    runs: Path
    own_token: bool = True  # whether this machine's own may publish when none is typed

    def start(
        self, name: str, source: str, dataset: str, revision: str, task: str, columns: str, classes: str,
        ignored: str, archive: str | None, preset: str, minutes: float,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Prepare the data, begin the run, and show it."""
        name = (name or "").strip()
        run = self.run(name)
        if (run.folder / "page.json").exists():
            raise refuse("There is a run of this name already: choose another.")
        if preset not in [value for _, value in PRESETS] or not 0 < (minutes or 0) <= MOST_MINUTES:
            raise refuse(f"Choose a preset, and minutes from 1 to {MOST_MINUTES}.")
        if busy(self.runs):
            raise refuse(BUSY)
        data, value = run.folder / "data", _value(ignored)
        shutil.rmtree(data, ignore_errors=True)
        try:
            if source == SHAPES_CHOICE:
                draw_shapes(data)
                options = _custom(str(data), "image", "mask", ",".join(SHAPES), None)
            elif source == ZIP_CHOICE:
                options = self._zip(archive, data, classes, value)
            else:
                options = _hub_options(dataset, revision, task, columns, classes, value)
            options += ["--preset", preset, "--minutes", f"{minutes:g}"]
            TrainingRun.create(self.runs, name, options).start()
        except (DataError, RunError, gr.Error) as error:
            if not (run.folder / "page.json").exists():  # nothing of a refused form stays
                shutil.rmtree(run.folder, ignore_errors=True)
            raise error if isinstance(error, gr.Error) else refuse(str(error)) from error
        return self.show(name)

    def run(self, name: str) -> TrainingRun:
        """The run of a name that came from outside."""
        try:
            return TrainingRun(self.runs, name)
        except RunError as error:
            raise refuse(str(error)) from error

    def names(self) -> list[str]:
        """Every run, the newest first."""
        return [run.name for run in TrainingRun.all(self.runs)]

    def stop(self, name: str) -> tuple[Any, ...]:
        """Stop the run; it can be continued."""
        self._known(name).stop()
        return self.show(name)

    def proceed(self, name: str) -> tuple[Any, ...]:
        """Continue a stopped, failed or interrupted run."""
        run = self._known(name)
        if run.state in ("running", "stopping", "finished"):
            raise refuse(f"The run {WORDS[run.state]}.")
        try:
            run.start()
        except RunError as error:
            raise refuse(str(error)) from error
        return self.show(name)

    def show(self, name: str | None) -> tuple[Any, ...]:
        """What the outputs show of a run: how it stands, what it found so far, and what can be pressed."""
        names = self.names()
        if name not in names:  # the one that is running, else the newest
            running = (run.name for run in TrainingRun.all(self.runs) if run.running)
            name = next(running, names[0] if names else None)
        chooser = gr.Dropdown(choices=names, value=name)
        if name is None:
            off = gr.Button(interactive=False)
            hidden = gr.Column(visible=False)
            return chooser, gr.Timer(active=False), NO_RUN, "", hidden, "", "", "", off, off, off
        run = TrainingRun(self.runs, name)
        progress = run.progress()
        state = progress.state
        shape, genotype, alpha = run.shape(), run.genotype(), run.alpha()
        drawn = searchseg.draw(genotype, **shape) if genotype and shape else ""
        busy_now = state in ("running", "stopping")
        return (
            chooser,
            gr.Timer(active=busy_now),
            _words(run, progress),
            _curves(progress),
            gr.Column(visible=True),
            drawn,
            draw_alpha(alpha) if alpha else "",
            progress.log,
            gr.Button(interactive=busy_now),
            gr.Button(interactive=not busy_now and state != "finished"),
            gr.Button(interactive=state == "finished"),
        )

    def publish(self, name: str, repo_id: str, private: bool, token: str) -> str:
        """Publish the model of a finished run; the token is handed on, not kept."""
        run = self._known(name)
        if run.state != "finished":
            return warning("Only a finished run can be published.")
        token = (token or "").strip()
        if not token and not self.own_token:
            return warning("Type a token with write access, or log in.")
        try:
            sent = publish(run.model, (repo_id or "").strip(), private=private, token=token or None)
        except PublishError as error:
            return warning(_without(str(error), token, str(run.model)))
        return quiet(f"{'Published' if sent.changed else 'Already there'}: {sent.url}")

    def _known(self, name: str) -> TrainingRun:
        if name not in self.names():
            raise refuse("Choose a run first.")
        return TrainingRun(self.runs, name)

    def _zip(self, archive: str | None, data: Path, classes: str, ignored: int | None) -> list[str]:
        if not archive:
            raise refuse("Upload a zip with the folders images and masks.")
        names = _names(classes)
        values, _ = unpack(Path(archive), data)
        strange = sorted(values - set(range(len(names))) - ({ignored} if ignored is not None else set()))
        if strange:
            told = ", ".join(map(str, strange[:5]))
            raise refuse(f"The masks also hold {told}: name a class for each value, or ignore one.")
        return _custom(str(data), "image", "mask", ",".join(names), ignored)


def _value(ignored: str | None) -> int | None:
    text = (ignored or "").strip()
    if text and not (re.fullmatch(r"[0-9]{1,3}", text) and int(text) <= 255):
        raise refuse("The mask value that counts for nothing is a number from 0 to 255, or left empty.")
    return int(text) if text else None


def _names(classes: str) -> list[str]:
    names = [name.strip() for name in (classes or "").replace("\n", ",").split(",") if name.strip()]
    if not 2 <= len(names) <= 255:
        raise refuse("Name the classes in the order of their values, such as: background, leaf.")
    if not all(_CLASS.fullmatch(name) for name in names):
        raise refuse("A class has a name of up to 60 printable characters.")
    return names


def _hub_options(
    dataset: str, revision: str, task: str, columns: str, classes: str, ignored: int | None
) -> list[str]:
    dataset, revision = (dataset or "").strip(), (revision or "").strip()
    if dataset and not is_hub_id(dataset):
        raise refuse("Type a Hub dataset as user/name.")
    if revision and not _REVISION.fullmatch(revision):
        raise refuse("A revision is a branch, a tag or a commit.")
    given = [f"--revision={revision}"] if revision else []
    if task == "pet":
        return ["--task", "pet", *([f"--data={dataset}"] if dataset else []), *given]
    if not dataset:
        raise refuse("Type a Hub dataset as user/name.")
    if task == "camvid":
        return ["--task", "camvid", f"--data={dataset}", *given]
    image, _, mask = (columns or "").partition(",")
    image, mask = image.strip() or "image", mask.strip() or "mask"
    if not (_COLUMN.fullmatch(image) and _COLUMN.fullmatch(mask)):
        raise refuse("Name the columns of pictures and masks, such as: image, mask.")
    return [*_custom(dataset, image, mask, ",".join(_names(classes)), ignored), *given]


def _custom(data: str, image: str, mask: str, classes: str, ignored: int | None) -> list[str]:
    # one word each, with "=": a value that begins with a dash must not become an option
    words = [f"--data={data}", f"--image-column={image}", f"--mask-column={mask}", f"--classes={classes}"]
    return ["--task", "custom", *words, *([] if ignored is None else [f"--ignore-value={ignored}"])]


def _without(sentence: str, token: str, folder: str) -> str:
    clean = sentence.replace(folder, "the model")
    return clean.replace(token.strip(), "(token)") if (token or "").strip() else clean


def _words(run: TrainingRun, progress: Progress) -> str:
    left = progress.seconds_left
    done = f"{progress.epoch} of {progress.epochs or '?'} epochs"
    facts = [("run", f"{run.name} {WORDS[progress.state]}"), ("stage", f"{progress.stage}, {done}")]
    if left is not None:
        facts.append(("time left", f"about {left / 60:.0f} min" if left > 90 else f"about {left:.0f} s"))
    score = next((row["train_miou"] for row in reversed(progress.retrain) if "train_miou" in row), None)
    if score is not None:
        facts.append(("mIoU on training pictures", f"{score:.3f}"))
    if progress.state == "finished":
        miou = read_metrics(run.model).get("miou")
        facts += [("mIoU on test pictures", f"{miou:.3f}")] if isinstance(miou, float) else []
        facts.append(("next", "choose it in the other tabs, or publish it below"))
    return table(("", ""), facts)


def _curves(progress: Progress) -> str:
    """Loss and mIoU by epoch; retraining counts on where the search ended."""
    stages = (
        ("weights", progress.search, "weight", 0),
        ("alpha", progress.search, "alpha", 0),
        ("retraining", progress.retrain, "train", len(progress.search)),
    )
    drawn = (
        draw_curves(
            title, {name: _points(rows, f"{kind}_{what}", ahead) for name, rows, kind, ahead in stages}
        )
        for title, what in (("Loss", "loss"), ("mIoU", "miou"))
    )
    return f'<div class="curves">{"".join(drawn)}</div>'


def _points(rows: list[dict[str, Any]], key: str, ahead: int) -> list[tuple[float, float]]:
    """(epoch, value) of the rows that have both as numbers."""
    return [
        (row["epoch"] + ahead, row[key])
        for row in rows
        if isinstance(row.get(key), int | float) and isinstance(row.get("epoch"), int)
    ]


def lay_out(runs: Path) -> Any:
    """Components and events; returns the event after which a new model may be there."""
    tab = WorkshopTab(runs, own_token="SPACE_ID" not in os.environ)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            source = gr.Radio([SHAPES_CHOICE, HUB_CHOICE, ZIP_CHOICE], value=SHAPES_CHOICE, label="Data")
            with gr.Group(visible=False) as hub_data:
                dataset = gr.Textbox(label="Hub dataset", placeholder="user/name; empty for Oxford-IIIT Pet")
                revision = gr.Textbox(label="Revision", placeholder="a commit, so that it stays the same")
                task = gr.Radio(["pet", "camvid", "custom"], value="pet", label="What its columns mean")
                columns = gr.Textbox(label="custom: columns", placeholder="image, mask")
            with gr.Group(visible=False) as zip_data:
                archive = only_uploaded_files(
                    gr.File(file_types=[".zip"], label="images/NAME.jpg and masks/NAME.png, 20 MB at most")
                )
            with gr.Group(visible=False) as own_classes:
                classes = gr.Textbox(label="Classes, by mask value", placeholder="background, leaf")
                # a Number that is left empty arrives as 0, which is a class
                ignored = gr.Textbox(label="Mask value that counts for nothing", placeholder="none, or 255")
            preset = gr.Radio(PRESETS, value="smoke", label="Preset")
            minutes = gr.Number(2, label="Minutes, about", minimum=1, maximum=MOST_MINUTES, precision=0)
            name = gr.Textbox("my-first", label="Name of the run", info="a-z, 0-9 and -", elem_id="run-name")
            start = gr.Button("Search and train", variant="primary")
        with gr.Column(scale=3, min_width=300):
            chosen = gr.Dropdown(tab.names(), label="Run", elem_id="run")
            with gr.Row():
                stop = gr.Button("Stop", interactive=False)
                proceed = gr.Button("Continue", interactive=False)
            words = gr.HTML(NO_RUN, elem_id="progress")
            curves = gr.HTML(elem_id="curves", apply_default_css=False)
    with gr.Column(visible=False) as details:
        with gr.Accordion("The genotype now", open=True):
            drawn = gr.HTML(elem_classes="drawing", apply_default_css=False, elem_id="growing")
        with gr.Accordion("Alphas", open=False):
            alphas = gr.HTML(elem_classes="drawing", apply_default_css=False)
        with gr.Accordion("Log", open=False):
            log = gr.Textbox(show_label=False, lines=10, elem_id="log", interactive=False)
        with gr.Accordion("Publish on the Hub", open=False):
            with gr.Row():
                repo_id = gr.Textbox(label="Hub id", placeholder="me/my-network")
                token = gr.Textbox(label="Token with write access", type="password")
                private = gr.Checkbox(label="private")
            if os.environ.get("OAUTH_CLIENT_ID"):  # a Space with hf_oauth
                gr.LoginButton()
            send = gr.Button("Publish", interactive=False)
            sent = gr.HTML(elem_id="sent")
    timer = gr.Timer(REFRESH_SECONDS, active=False)

    outputs = [chosen, timer, words, curves, details, drawn, alphas, log, stop, proceed, send]
    form = [name, source, dataset, revision, task, columns, classes, ignored, archive, preset, minutes]
    hidden: dict[str, Any] = {"api_visibility": "private"}
    quietly: dict[str, Any] = {"show_progress": "hidden", "queue": False, **hidden}
    source.input(
        lambda kind: [gr.Group(visible=kind == HUB_CHOICE), gr.Group(visible=kind == ZIP_CHOICE),
                      gr.Group(visible=kind != SHAPES_CHOICE)],
        source, [hub_data, zip_data, own_classes], **quietly,
    )  # fmt: skip
    start.click(tab.start, form, outputs, **hidden)
    stop.click(tab.stop, chosen, outputs, **hidden)
    proceed.click(tab.proceed, chosen, outputs, **hidden)
    chosen.input(tab.show, chosen, outputs, **quietly)
    send.click(_publish_with_login(tab), [chosen, repo_id, private, token], sent, **hidden).then(
        lambda: "", None, token, **hidden
    )
    ticked = timer.tick(tab.show, chosen, outputs, **quietly)
    demo = gr.context.Context.root_block
    demo.load(tab.show, chosen, outputs, **quietly)
    return ticked


def _publish_with_login(tab: WorkshopTab) -> Any:
    """`publish` that takes the token of a Hugging Face login where the page offers one."""
    if not os.environ.get("OAUTH_CLIENT_ID"):
        return tab.publish

    def with_login(name: str, repo_id: str, private: bool, token: str, login: gr.OAuthToken | None) -> str:
        return tab.publish(name, repo_id, private, token or (login.token if login else ""))

    with_login.__annotations__["login"] = gr.OAuthToken | None  # gradio fills it in by its type
    return with_login
