"""Read and check a benchmark's grid: methods × tasks × fractions × seeds in YAML.

.. code-block:: yaml

    name: phantom                      # letters, digits, - and _
    work: runs/benchmark/phantom       # optional: checkpoints, logs, predictions, rows
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

Paths are relative to the working directory, as in all configs. ``set`` holds dotted settings as on the command line.
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
        pretrain: of pre-training, or of the random weights of a bare encoder.
        data: of the subset that a fraction draws, of the order and of the augmentation.
        head: of the task's run.
        name: of the run in rows; "p0d0h0" if empty.
        fractions: those it is run at; all if None. (The subset of 100 % does not depend on the seed.)
    """

    pretrain: int = 0
    data: int = 0
    head: int = 0
    name: str = ""
    fractions: list[float] | None = None

    @property
    def label(self) -> str:
        """The name, or one made of the seeds."""
        return self.name or f"p{self.pretrain}d{self.data}h{self.head}"


@dataclass(frozen=True)
class Changes:
    """Changes to a config: dotted settings (``set``) over YAML files (``overlays``)."""

    set: dict[str, Any] = field(default_factory=dict)
    overlays: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MethodSpec:
    """A row of the tables; give exactly one of ``pretrain``, ``checkpoint`` and ``encoder``.

    Args:
        title: in tables; the name if empty.
        pretrain: config of its pre-training, which ``overlays`` (YAML files) and ``set`` (dotted settings) change.
        checkpoint: a medvlp checkpoint.
        encoder: a bare encoder, as ``model.init_args.encoder`` of a task.
        tasks: the tasks to run it on; all that it supports if None. A bare encoder has no text encoder and therefore
            supports no zero-shot task.
        cannot: tasks that it does not support; tables print "/".
        configs: config by task, instead of the task's own.
        task_set: dotted settings by task.
        minutes: estimated duration of one pre-training, used until one has been measured.
        gigabytes: estimated disk space of one pre-training.
        timeout_min: time limit of a pre-training in minutes; the grid's if None.
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

    def supports(self, task: str, trains: bool) -> bool:
        """Return whether it can do a task, which ``trains`` or is zero-shot."""
        return task not in self.cannot and (trains or not self.encoder)


@dataclass(frozen=True)
class TaskSpec:
    """A column of the tables: the ``config`` of a task, and what the grid changes in it.

    Args:
        title: in tables; the name if empty.
        set: dotted settings over the config; ``by_fraction`` has further ones by fraction.
        metric: shown in the tables; the task's primary metric if empty.
        minutes: estimated duration of one run, used until one has been measured.
        panels: number of images whose predictions are kept for the page.
        timeout_min: time limit of a job in minutes; the grid's if None.
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
    """A benchmark: methods (rows) by tasks (columns), at all ``fractions`` where a task trains, for all ``runs``.

    Args:
        pretrain: changes to every pre-training.
        task_set: dotted settings of every task.
        title: of the page; the name if empty.
        work: output folder; ``runs/benchmark/<name>`` if empty.
        watts: assumed power of one device under load, for an estimate of energy; no estimate if None.
        keep_heads: keep the checkpoints of tasks after they are done (pre-trained ones are always kept).
        timeout_min: time limit of a job in minutes, after which it counts as failed; no limit if None.
        slurm: parameters of submitit's executor, such as ``slurm_partition``, ``timeout_min``, ``gpus_per_node``; under
            ``pretrain`` and ``task`` those of one kind of job.
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
        """Output folder."""
        return Path(self.work or f"runs/benchmark/{self.name}")


def read_grid(path: str | Path) -> Grid:
    """Read and check a grid.

    Raises:
        ConfigError: the file, a key or a value is wrong.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a grid is a mapping with name, methods and tasks")
    keys = [f.name for f in fields(Grid)]
    if unknown := sorted(set(content) - set(keys)):
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}; expected one of: {', '.join(keys)}")
    if isinstance(content.get("tasks"), dict):
        content["tasks"] = {name: _text_keys(task, f"{path}: task {name!r}") for name, task in content["tasks"].items()}
    _check_plain(content, str(path))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Grid)
    try:
        grid = Grid(**vars(parser.instantiate_classes(parser.parse_object(content))))
    except (ArgumentError, AttributeError, TypeError, KeyError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"{path}: {'; '.join(lines)}") from error
    _check_null(grid, str(path))
    _check(grid, path)
    return grid


def _text_keys(task: Any, where: str) -> Any:
    # YAML reads the keys of by_fraction as numbers
    if isinstance(task, dict) and isinstance(task.get("by_fraction"), dict):
        try:
            return {**task, "by_fraction": {f"{float(k):g}": v for k, v in task["by_fraction"].items()}}
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"{where}: the keys of by_fraction must be fractions, such as 0.1") from None
    return task


def _check_plain(value: Any, where: str) -> None:
    """Refuse what YAML accepts but settings do not: keys that are not strings, huge integers, lone surrogates."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the key {key!r} is not a string; put it in quotation marks")
            _check_plain(item, f"{where}: {key}")
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, where)
    elif isinstance(value, int) and value.bit_length() > 64:
        raise ConfigError(f"{where}: the number has too many digits")
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigError(f"{where}: {value!r} is not valid Unicode")


def _check_null(spec: Any, where: str) -> None:
    """Refuse a null in place of a list, a mapping or a number, which the parser accepts."""
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
                raise ConfigError(f"{path}: {kind} {name!r}: use letters, digits, - and _ in names")
    if not grid.methods or not grid.tasks or not grid.runs:
        raise ConfigError(f"{path}: a grid needs at least one method, one task and one run")
    specs: list[Grid | MethodSpec | TaskSpec] = [grid, *grid.methods.values(), *grid.tasks.values()]
    for spec in specs:
        if spec.timeout_min is not None and not spec.timeout_min > 0:
            raise ConfigError(f"{path}: timeout_min is {spec.timeout_min}; give minutes above 0")
    for name, method in grid.methods.items():
        _check_method(method, grid, f"{path}: method {name!r}")
    _check_fractions(grid, path)


def _check_method(method: MethodSpec, grid: Grid, where: str) -> None:
    given = [key for key in ("pretrain", "checkpoint", "encoder") if getattr(method, key)]
    if len(given) != 1:
        raise ConfigError(
            f"{where}: give exactly one of pretrain, checkpoint, encoder, not {' and '.join(given) or 'none'}"
        )
    if not isinstance((method.encoder or {}).get("image", {}), dict):
        raise ConfigError(f"{where}: encoder: image must be a mapping, such as {{name: resnet50}}")
    for key in ("tasks", "cannot", "configs", "task_set"):
        for task in getattr(method, key) or ():
            if task not in grid.tasks:
                raise ConfigError(f"{where}: {key}: unknown task {task!r}; expected one of: {', '.join(grid.tasks)}")


def _check_fractions(grid: Grid, path: str | Path) -> None:
    fractions = {f"task {name!r}: fractions": task.fractions or [] for name, task in grid.tasks.items()}
    for where, values in {"fractions": grid.fractions, **fractions}.items():
        for fraction in values:
            if not 0 < fraction <= 1:
                raise ConfigError(f"{path}: {where}: {fraction} is not in (0, 1]")
    known = sorted({*grid.fractions, *(fraction for values in fractions.values() for fraction in values)})
    for seeds in grid.runs:
        for fraction in set(seeds.fractions or ()).difference(known):
            raise ConfigError(f"{path}: runs: no task has the fraction {fraction}; expected one of: {known}")
    for name, task in grid.tasks.items():
        keys = {f"{fraction:g}" for fraction in task.fractions or grid.fractions}
        for key in set(task.by_fraction) - keys:
            raise ConfigError(
                f"{path}: task {name!r}: by_fraction: {key} is not among its fractions: {', '.join(sorted(keys))}"
            )
