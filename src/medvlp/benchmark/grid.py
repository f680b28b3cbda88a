"""A benchmark's grid: methods × tasks × fractions × seeds in plain YAML, read and checked.

.. code-block:: yaml

    name: phantom                      # letters, digits, - and _
    work: runs/benchmark/phantom       # checkpoints, logs, predictions, rows; may be left out
    runs:                              # combinations of seeds; each cell of a table is a mean over them
      - {pretrain: 0, data: 0, head: 0}
      - {pretrain: 1, data: 1, head: 1}
    fractions: [0.01, 0.1, 1.0]        # for tasks that train
    pretrain: {set: {…}}               # for every pre-training
    methods:
      g2d: {title: G2D, pretrain: experiments/pretrain/g2d/phantom.yaml, overlays: […], set: {…}}
      mine: {checkpoint: mine.ckpt}
      random: {encoder: {image: {name: resnet50}}}
    tasks:
      linear_rsna: {config: experiments/downstream/linear/rsna.yaml, set: {…}, by_fraction: {0.01: {…}}}

Paths are relative to the working folder, as in all configs. ``set`` holds dotted settings as on the command line.
"""

import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from medvlp.errors import ConfigError
from medvlp.io.yaml import read_yaml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Seeds:
    """One combination of seeds.

    Args:
        pretrain: of pre-training; of a bare encoder, of its random weights.
        data: of the subset that a fraction draws, of the order and of the augmentation.
        head: of the task's run.
        name: how rows call it; "p0d0h0" if empty.
        fractions: those that it is run at; all if None. (The subset of 100 % is the same whatever its seed.)
    """

    pretrain: int = 0
    data: int = 0
    head: int = 0
    name: str = ""
    fractions: list[float] | None = None


@dataclass(frozen=True)
class Changes:
    """What is changed in a config.

    Args:
        set: dotted settings.
        overlays: YAML files over the config.
    """

    set: dict[str, Any] = field(default_factory=dict)
    overlays: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MethodSpec:
    """A row of the tables. Exactly one of ``pretrain``, ``checkpoint`` and ``encoder`` is given.

    Args:
        title: how tables print it; its name if empty.
        pretrain: config of its pre-training.
        overlays: YAML files over that config.
        set: dotted settings over both.
        checkpoint: a medvlp checkpoint instead.
        encoder: a bare encoder instead, as ``model.init_args.encoder`` of a task.
        tasks: the tasks it takes part in; all that it can if None. A bare encoder has no text side, and therefore no
            task without training.
        cannot: tasks for which the tables print "/".
        configs: task to a config of its own in the place of the task's.
        task_set: task to dotted settings of its own.
        minutes: about how long one pre-training takes, for the estimate before anything has run.
        gigabytes: about how much a pre-training leaves on the disk.
        timeout_min: minutes after which a pre-training is ended; the grid's if None.
    """

    title: str = ""
    pretrain: str | None = None
    overlays: list[str] = field(default_factory=list)
    set: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    encoder: dict[str, Any] | None = None
    tasks: list[str] | None = None
    cannot: list[str] = field(default_factory=list)
    configs: dict[str, str] = field(default_factory=dict)
    task_set: dict[str, dict[str, Any]] = field(default_factory=dict)
    minutes: float = 10.0
    gigabytes: float = 0.2
    timeout_min: float | None = None


@dataclass(frozen=True)
class TaskSpec:
    """A column of the tables.

    Args:
        config: of the task.
        title: how tables print it; its name if empty.
        protocol: in the place of the config's.
        fractions: in the place of the grid's.
        set: dotted settings over the config.
        by_fraction: fraction to further dotted settings.
        metric: which metric the tables show; the task's primary one if empty.
        minutes: about how long one run takes, for the estimate before anything has run.
        panels: images that are kept with what each method made of them, for the report.
        timeout_min: minutes after which a job is ended; the grid's if None.
    """

    config: str
    title: str = ""
    protocol: str | None = None
    fractions: list[float] | None = None
    set: dict[str, Any] = field(default_factory=dict)
    by_fraction: dict[str, dict[str, Any]] = field(default_factory=dict)
    metric: str = ""
    minutes: float = 1.0
    panels: int = 0
    timeout_min: float | None = None


@dataclass(frozen=True)
class Grid:
    """A benchmark.

    Args:
        name: of the benchmark.
        methods: rows.
        tasks: columns.
        runs: combinations of seeds.
        fractions: shares of the training part, for tasks that train.
        pretrain: changes to every pre-training.
        task_set: dotted settings of every task.
        title: of reports; the name if empty.
        work: folder of everything that comes out; ``runs/benchmark/<name>`` if empty.
        watts: assumed power of one device under load, for the estimate of energy; none without it.
        keep_heads: keep the checkpoints of tasks that are done (pre-trained ones are always kept).
        timeout_min: minutes after which a job is ended and counts as failed; none if None.
        slurm: parameters of submitit's executor, such as ``slurm_partition``, ``timeout_min``, ``gpus_per_node``; under
            ``pretrain`` and ``task`` those of one kind of jobs.
    """

    name: str
    methods: dict[str, MethodSpec]
    tasks: dict[str, TaskSpec]
    runs: list[Seeds] = field(default_factory=lambda: [Seeds()])
    fractions: list[float] = field(default_factory=lambda: [1.0])
    pretrain: Changes = field(default_factory=Changes)
    task_set: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    work: str = ""
    watts: float | None = None
    keep_heads: bool = False
    timeout_min: float | None = None
    slurm: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return Path(self.work or f"runs/benchmark/{self.name}")


def read_grid(path: str | Path) -> Grid:
    """Reads a grid.

    Args:
        path: YAML file.

    Raises:
        ConfigError: the file, the key or the value that is wrong, and what would be right.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a grid is a mapping with name, methods and tasks")
    if unknown := set(content) - {known.name for known in fields(Grid)}:
        raise ConfigError(
            f"{path}: a grid has no {sorted(unknown)[0]!r}; it has {', '.join(f.name for f in fields(Grid))}"
        )
    if isinstance(content.get("tasks"), dict):
        content["tasks"] = {name: _text_keys(task, f"{path}: task {name!r}") for name, task in content["tasks"].items()}
    _check_plain(content, str(path))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Grid)
    try:
        grid = parser.instantiate_classes(parser.parse_object(content))
    except (ArgumentError, AttributeError, TypeError, KeyError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"{path}: {'; '.join(lines)}") from error
    found = Grid(**vars(grid))
    _check_null(found, str(path))
    _check(found, path)
    return found


def _text_keys(task: Any, where: str) -> Any:
    """Fractions as keys are numbers in YAML; ``by_fraction`` is looked up by their text."""
    if isinstance(task, dict) and isinstance(task.get("by_fraction"), dict):
        try:
            return {**task, "by_fraction": {f"{float(k):g}": v for k, v in task["by_fraction"].items()}}
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"{where}: by_fraction has fractions as its keys, such as 0.1") from None
    return task


def _check_plain(value: Any, where: str) -> None:
    """Refuses what YAML can hold and settings cannot: keys that are no text, and integers beyond any use."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the key {key!r} is no text; put it in quotation marks")
            _check_plain(item, f"{where}: {key}")
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, where)
    elif isinstance(value, int) and value.bit_length() > 64:
        raise ConfigError(f"{where}: the number has too many digits")
    elif isinstance(value, str) and not value.isprintable() and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise ConfigError(f"{where}: {value!r} is no text")


def _check_null(spec: Any, where: str) -> None:
    """The parser lets a null stand where a list, a mapping or a number is wanted."""
    for name, kind in get_type_hints(type(spec)).items():
        value, settings = getattr(spec, name), kind in (dict[str, Any], dict[str, Any] | None)
        if value is None and type(None) not in get_args(kind):
            raise ConfigError(f"{where}: {name} is null; give a value, or leave it out")
        parts = value if isinstance(value, dict) else dict(enumerate(value if isinstance(value, list) else [value]))
        for key, part in parts.items():
            if is_dataclass(part):
                _check_null(part, f"{where}: {name} {key}")
            elif part is None and value is not None and not settings:
                raise ConfigError(f"{where}: {name} {key} is null; give a value, or leave it out")


def _check(grid: Grid, path: str | Path) -> None:
    for kind, names in (("grid", [grid.name]), ("method", grid.methods), ("task", grid.tasks)):
        for name in names:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"{path}: {kind} {name!r}: names are of letters, digits, - and _")
    if not grid.methods or not grid.tasks or not grid.runs:
        raise ConfigError(f"{path}: a grid needs at least one method, one task and one run")
    for name, method in grid.methods.items():
        given = [k for k in ("pretrain", "checkpoint", "encoder") if getattr(method, k)]
        if len(given) != 1:
            what = " and ".join(given) or "none of them"
            raise ConfigError(f"{path}: method {name!r}: give one of pretrain, checkpoint, encoder; there is {what}")
        if not isinstance((method.encoder or {}).get("image", {}), dict):
            raise ConfigError(f"{path}: method {name!r}: encoder: image is no mapping, such as {{name: resnet50}}")
        for key in ("tasks", "cannot", "configs", "task_set"):
            for task in getattr(method, key) or ():
                if task not in grid.tasks:
                    raise ConfigError(
                        f"{path}: method {name!r}: {key} names {task!r}, which is no task of this grid; there are "
                        f"{', '.join(grid.tasks)}"
                    )
    own = [method.timeout_min for method in grid.methods.values()] + [task.timeout_min for task in grid.tasks.values()]
    for minutes in (grid.timeout_min, *own):
        if minutes is not None and not minutes > 0:
            raise ConfigError(f"{path}: timeout_min is {minutes}; give minutes above 0")
    for where, fractions in [("fractions", grid.fractions)] + [
        (f"task {name!r}: fractions", task.fractions or []) for name, task in grid.tasks.items()
    ]:
        for fraction in fractions:
            if not 0 < fraction <= 1:
                raise ConfigError(f"{path}: {where}: {fraction} does not lie in (0, 1]")
    there = {*grid.fractions, *(fraction for task in grid.tasks.values() for fraction in task.fractions or ())}
    for seeds in grid.runs:
        for fraction in set(seeds.fractions or ()) - there:
            raise ConfigError(f"{path}: runs: the fraction {fraction} is of no task; there are {sorted(there)}")
    for name, task in grid.tasks.items():
        known = {f"{fraction:g}" for fraction in task.fractions or grid.fractions}
        for key in set(task.by_fraction) - known:
            others = ", ".join(sorted(known))
            raise ConfigError(f"{path}: task {name!r}: by_fraction has {key}, fractions have {others}")
