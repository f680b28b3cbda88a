"""``medvlp view``: samples of a corpus with their labels, boxes and masks, as contact sheets and as an HTML page.

Report text is written only into these files, never printed.
"""

import argparse
import base64
import io
import re
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from medvlp import viz
from medvlp.arguments import add_corpus_arguments, settle_corpus_arguments
from medvlp.datasets import CORPORA
from medvlp.datasets.base import RadiographDataset
from medvlp.datasets.corpus import TASKS, Corpus, Task
from medvlp.datasets.options import OPTION_HELP, corpus_from_words
from medvlp.errors import DataError, UnreadableItemError, check_choice, check_range
from medvlp.seeding import derive_seed
from medvlp.splits import SplitLeakWarning, make_split, split_names
from medvlp.store import atomic_write

PER_SHEET = 24
"""Samples on one sheet."""

_EXCERPT = 400  # characters of a report on the page
_SHEET_EXCERPT = 120  # and on a sheet


@dataclass(frozen=True)
class Card:
    """A sample as shown: uint8 picture (h, w, 3), labels present, facts (view, boxes, …), shortened text.

    The picture of an unreadable image is None, and ``problem`` says why.
    """

    id: str
    picture: np.ndarray | None
    labels: tuple[str, ...]
    facts: tuple[str, ...]
    text: str = ""
    problem: str = ""

    @property
    def png(self) -> str:
        """The picture as a data URL, or ""."""
        if self.picture is None:
            return ""
        buffer = io.BytesIO()
        Image.fromarray(self.picture).save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Viewed:
    """What :func:`view` wrote: the HTML file, the PNG files, and the cards in them."""

    page: Path
    sheets: tuple[Path, ...]
    cards: tuple[Card, ...]


def choose(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose records so that every label of (N, K) is present (1; NaN and −1 are not).

    Returns:
        int64 indices, ascending, ``min(count, N)`` of them. Round by round, each label that occurs, rarest first, and
        then the records without any give one that was not yet chosen, in the order that the seed shuffles.
    """
    order = np.random.default_rng(derive_seed(seed, len(labels))).permutation(len(labels))
    present = labels[order] == 1
    masks = (*present.T[np.argsort(present.sum(0), kind="stable")], ~present.any(1))
    queues = [iter(order[mask].tolist()) for mask in masks]
    chosen: dict[int, None] = {}
    while queues and len(chosen) < count:
        for queue in list(queues):
            record = next((r for r in queue if r not in chosen), None)
            if record is None:
                queues.remove(queue)
            elif len(chosen) < count:
                chosen[record] = None
    return np.array(sorted(chosen), dtype=np.int64)


def view(
    corpus: Corpus,
    out: str | Path,
    *,
    task: Task | None = None,
    split: str | None = None,
    part: str = "train",
    count: int = 24,
    seed: int = 0,
    size: int = 256,
    text: bool = True,
) -> Viewed:
    """Write ``sheet-1.png`` … and ``index.html`` with samples of a corpus.

    Args:
        corpus: its reader.
        out: folder, made if needed; sheets of an earlier call are deleted.
        task: whose records; None takes the corpus's first.
        split: take the samples from a part of this split; None takes all records.
        part: "train", "validate" or "test".
        count: number of samples, chosen so that every label occurs (:func:`choose`).
        seed: of the choice.
        size: longer side of a picture, in pixels.
        text: show reports and phrases.

    Raises:
        ConfigError: an unknown split or part, or a number out of range.
        DataError: the corpus cannot be read, or has no records to show.
    """
    check_range("[1, inf)", count=count)
    check_range("[16, inf)", size=size)
    table, box_names, title = _records(corpus, task or corpus.tasks[0], split, part)
    targets = [target for target, column in (("mask", "shapes"), ("boxes", "boxes")) if column in table.column_names]
    dataset = RadiographDataset(table, targets=targets, box_names=box_names)  # type: ignore[arg-type]
    cards = tuple(_card(dataset, i, size, text) for i in choose(dataset.labels.numpy(), count, seed).tolist())
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("sheet-*.png"):
        if re.fullmatch(r"sheet-\d+\.png", old.name):
            old.unlink()
    sheets = []
    for number, start in enumerate(range(0, len(cards), PER_SHEET), 1):
        some = cards[start : start + PER_SHEET]
        figure = viz.contact_sheet([card.picture for card in some], [_caption(card) for card in some])
        sheets.append(viz.save(figure, out / f"sheet-{number}.png"))
    page = out / "index.html"
    templates = Environment(loader=PackageLoader("medvlp", ""), autoescape=True, undefined=StrictUndefined)
    html = templates.get_template("view.html").render(title=title, total=len(table), cards=cards)
    with atomic_write(page, private=True) as file:  # it shows reports
        file.write(html.encode())
    return Viewed(page, tuple(sheets), cards)


def _records(corpus: Corpus, task: Task, split: str | None, part: str) -> tuple[pa.Table, tuple[str, ...], str]:
    records = corpus.records(task)
    table, title = records.table, f"{corpus.title}, {task}"
    if split is not None:
        check_choice(f"split of {corpus.title}", split, split_names(corpus.name))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SplitLeakWarning)
            listing = corpus.listing()
            parts = make_split(corpus.name, split, listing, strict=False).parts
        check_choice(f"part of the split {split}", part, parts)
        table = records.take(corpus.chosen(records, listing, parts[part]))
        title = f"{title}, {part} of the split {split}"
    table = corpus.after_split(table)
    if not len(table):
        raise DataError(f"{title} has no records; see: medvlp doctor {corpus.name} --root {corpus.root}")
    return table, records.box_names, title


def _card(dataset: RadiographDataset, index: int, size: int, with_text: bool) -> Card:
    row = dataset.table.slice(index, 1).to_pylist()[0]
    labels = tuple(name for name in dataset.label_names if row[name] == 1)
    uncertain = tuple(f"{name} uncertain" for name in dataset.label_names if row[name] == -1)
    facts = (*uncertain, *(f"{key} {row[key]}" for key in ("view", "pool") if row.get(key)))
    text = textwrap.shorten(row.get("text") or "", _EXCERPT, placeholder=" …") if with_text else ""
    try:
        sample = dataset[index]
    except UnreadableItemError as error:
        return Card(row["id"], None, labels, facts, text, error.reason)
    image = (sample["image"][0].numpy() * 255).round().astype(np.uint8)
    picture = viz.annotated(
        image,
        size=size,
        mask=sample["mask"][0].numpy() > 0 if "mask" in sample else None,
        boxes=sample["boxes"].numpy() if "boxes" in sample else None,
        # one class needs no name on each box
        names=[dataset.box_names[int(n)] for n in sample.get("box_labels", ())] if len(dataset.box_names) > 1 else [],
    )
    if "boxes" in sample and len(sample["boxes"]):
        facts += (f"{len(sample['boxes'])} box{'es' if len(sample['boxes']) > 1 else ''}",)
    if "mask" in sample and sample["mask"].any():
        facts += (f"mask of {100 * float(sample['mask'].mean()):.1f} %",)
    return Card(row["id"], picture, labels, (*facts, f"{image.shape[1]} × {image.shape[0]}"), text)


def _caption(card: Card) -> str:
    lines = [card.id, ", ".join(card.labels) or "no label present", card.problem or ", ".join(card.facts)]
    if card.text:
        lines.append(textwrap.shorten(card.text, _SHEET_EXCERPT, placeholder=" …"))
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medvlp view``."""
    add_corpus_arguments(parser, CORPORA)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures and of index.html")
    parser.add_argument("--task", choices=TASKS, help="whose records (default: the first task of the dataset)")
    parser.add_argument("--split", help="take the samples from a part of this split (default: all records)")
    parser.add_argument("--part", choices=["train", "validate", "test"], default="train", help="part of --split")
    parser.add_argument("--count", type=int, default=24, help="samples (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of samples")
    parser.add_argument("--size", type=int, default=256, help="longer side of a picture in pixels (default: 256)")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help=OPTION_HELP)
    parser.add_argument("--no-text", action="store_true", help="leave reports and phrases out of the files")


def run(args: argparse.Namespace) -> int:
    """Run ``medvlp view``; exit status 0, also if some images are unreadable: the page shows which."""
    settle_corpus_arguments(args, "view")
    corpus = corpus_from_words(args.dataset, args.root, args.option, on_error="skip")
    settings = {key: getattr(args, key) for key in ("task", "split", "part", "count", "seed", "size")}
    result = view(corpus, args.out, text=not args.no_text, **settings)
    unreadable = sum(1 for card in result.cards if card.problem)
    lost = f", {unreadable} of them unreadable" if unreadable else ""
    print(f"{result.page}: {len(result.cards)} samples{lost}")
    return 0
