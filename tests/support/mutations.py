"""Seeded mutations of files, and the rules by which what is made of them is judged.

A :class:`Kind` makes sound files once; each of its trials damages one by the trial's own generator, lets the library
read it, and compares with what it knows. Trials run in a forked process with limits on memory and processor time, so
that a bomb, an endless loop or a crash of a decoder is the finding of one trial and not the end of the tests.
"""

import gzip
import json
import os
import resource
import select
import signal
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.errors import MedVLPError

PROCESSOR_SECONDS = 120
"""Of one trial; one that needs more hangs. Time of the processor: a slow or busy machine does not count."""

SILENT_SECONDS = 1800
"""After which a trial counts as waiting for ever."""

MEMORY = 4 << 30
"""Bytes of address space that trials may take beyond what the process has."""


class Trial:
    """One mutation.

    Args:
        rng: all that is drawn comes from it.
        folder: an empty folder.
    """

    def __init__(self, rng: np.random.Generator, folder: Path) -> None:
        self.rng, self.folder = rng, folder
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Say what was done."""
        self.notes.append(text)

    def one(self, items: Sequence[Any]) -> Any:
        """One of the items."""
        return items[int(self.rng.integers(len(items)))]

    def pick(self, words: str) -> str:
        """One of the words; those that stand there twice are drawn twice as often."""
        return self.one(words.split())

    def often(self, share: float) -> bool:
        """True in that share of the trials."""
        return bool(self.rng.random() < share)


class Kind:
    """What is mutated.

    Attributes:
        name: for the seeds.
        share: trials among 300.
    """

    name: str
    share: int

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def trial(self, trial: Trial) -> None:
        """Mutate, read, and raise an AssertionError for what is wrong; any other error is a finding as well."""
        raise NotImplementedError


def attempt(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a call returns, or the deliberate error that it raises, which holds no traceback."""
    try:
        return call(*args, **options)
    except MedVLPError as error:
        found = error
    assert str(found).strip()
    assert "Traceback" not in str(found), str(found)
    return found


def refused(result: Any) -> bool:
    """Whether :func:`attempt` met a deliberate error."""
    return isinstance(result, MedVLPError)


# ---------------------------------------------------------------------- running


def run(kind: Kind, seeds: Sequence[int]) -> list[str]:
    """Run trials.

    Returns:
        One line for each that failed, with its seed.
    """
    failures: list[str] = []
    left = list(seeds)
    while left:
        done, found, end = _forked(kind, left)
        failures += found
        left = left[done:]
        if end and left:  # the process ended within a trial
            failures.append(f"{kind.name}-{left[0]}: {end}")
            left = left[1:]
    return failures


def _forked(kind: Kind, seeds: Sequence[int]) -> tuple[int, list[str], str]:
    """Trials in one process: how many it ended, what it found, and how it died."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _child(kind, seeds, writer)
    os.close(writer)
    failures, done = [], 0
    with os.fdopen(reader) as stream:
        while select.select([stream], [], [], SILENT_SECONDS)[0]:
            line = stream.readline()
            if not line:
                break
            done += 1
            if text := json.loads(line):
                failures.append(text)
        else:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return done, failures, f"no end within {SILENT_SECONDS} s"
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        end = signal.Signals(os.WTERMSIG(status)).name
        return done, failures, f"hangs: {PROCESSOR_SECONDS} s of processor time" if end == "SIGXCPU" else f"died: {end}"
    return done, failures, "" if done == len(seeds) else f"the process ended with {os.waitstatus_to_exitcode(status)}"


def _child(kind: Kind, seeds: Sequence[int], writer: int) -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        for seed in seeds:
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(used.ru_utime + used.ru_stime) + PROCESSOR_SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
            os.write(writer, (json.dumps(judged(kind, seed)) + "\n").encode())
    finally:
        os._exit(0)


def judged(kind: Kind, seed: int) -> str:
    """One trial: "" or what is wrong."""
    import shutil
    import tempfile

    # not below the folder of the sound files, which some readers search
    folder = Path(tempfile.mkdtemp(prefix=f"{kind.name}-{seed}-"))
    trial = Trial(np.random.default_rng([seed, zlib.crc32(kind.name.encode())]), folder)
    try:
        kind.trial(trial)
    except BaseException as error:
        if os.environ.get("MEDVLP_FUZZ_TRACEBACK"):
            traceback.print_exc(file=sys.__stderr__)
        at = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        line = " ".join(str(error).split())[:400]
        return f"{kind.name}-{seed}: {'; '.join(trial.notes)}: {type(error).__name__}: {line} ({' '.join(at[-3:])})"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""


# ---------------------------------------------------------------------- bytes


def mutate_bytes(trial: Trial, data: bytes) -> bytes:
    """Flip, cut, repeat, insert, overwrite: what happens to bytes whatever they mean."""
    rng = trial.rng
    size = len(data)
    at = int(rng.integers(max(size, 1)))
    span = int(min(rng.geometric(0.05), 400))
    what = trial.pick("flip flip byte zeros cut tail drop repeat insert swap append")
    trial.note(f"{what} at {at} of {size}, {span}")
    changed = bytearray(data)
    if what == "flip" and size:
        for place in rng.integers(size, size=int(trial.one([1, 1, 2, 8, 64]))):
            changed[place] ^= 1 << int(rng.integers(8))
    elif what == "byte" and size:
        changed[at] = int(trial.one([0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x2C]))
    elif what == "zeros":
        changed[at : at + span] = bytes(len(changed[at : at + span]))
    elif what == "cut":
        del changed[at:]
    elif what == "tail":
        del changed[max(size - span, 0) :]
    elif what == "drop":
        del changed[at : at + span]
    elif what == "repeat":
        changed[at:at] = changed[at : at + span]
    elif what == "insert":
        changed[at:at] = rng.bytes(span)
    elif what == "swap":
        other = int(rng.integers(max(size, 1)))
        first, second = bytes(changed[at : at + 16]), bytes(changed[other : other + 16])
        changed[at : at + 16], changed[other : other + 16] = second, first
    else:
        changed += rng.bytes(span)
    return bytes(changed)


def gzip_bytes(data: bytes) -> bytes:
    """The same bytes for the same data."""
    return gzip.compress(data, 1, mtime=0)


# ---------------------------------------------------------------------- values

NUMBERS = (
    *(0, -0.0, 1, -1, 2, 0.5, 1e-9, 255, 256, 65536, 2**31 - 1, 2**31, 2**63, -(2**63), 10**18, 10**30, -(10**12)),
    *(1e38, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 10**400, 10**5000),
)
TEXTS = (
    *("", " ", "x", "0", "-1", "nan", "NaN", "inf", "1e999", "1_000", "0x10", "١٢", "true", "null", "None"),
    *("\0", "a\0b", "\n", "a\nb", "\r", "\t", "\ufeff", "\u2028", "\x85", "\u200b", "e\u0301", "ﬁ", "🫁", "\ud800"),
    *("../../x", "/etc/passwd", "http://x.invalid/y", "~", ".", "a" * 300, "x" * 70_000, "%s", "{}", "$(x)", "=1+1"),
    *("[red]x[/red]", "\\input{x}", "<b>", '"', "'", ",", ";", "-", "2026-01-01", "é", "Ä" * 50),
)


def odd(trial: Trial, depth: int = 0) -> Any:
    """A value that is seldom expected."""
    what = trial.pick("number number text text plain list mapping deep")
    if what == "number":
        return trial.one(NUMBERS)
    if what == "text":
        return trial.one(TEXTS)
    if what == "plain" or depth > 2:
        return trial.one([None, True, False, [], {}])
    if what == "list":
        return [odd(trial, depth + 1) for _ in range(int(trial.rng.integers(1, 4)))]
    if what == "mapping":
        return {str(trial.one(TEXTS)): odd(trial, depth + 1)}
    value: Any = 1
    for _ in range(int(trial.one([3, 50, 400]))):
        value = [value] if trial.often(0.5) else {"a": value}
    return value


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += _places(item, (*path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            found += _places(item, (*path, number))
    return found


def _at(value: Any, path: tuple) -> Any:
    for key in path:
        value = value[key]
    return value


def copied(value: Any) -> Any:
    """Mappings and lists anew, leaves as they are; tuples become lists."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list | tuple) else value


def _retyped(trial: Trial, item: Any) -> Any:
    if isinstance(item, bool) or item is None:
        return trial.one([str(item), int(item or 0), [item]])
    if isinstance(item, int | float):
        return trial.one([str(item), [item], {"value": item}, bool(item), -item, item * 10**9, float(item)])
    if isinstance(item, str):
        return trial.one(
            [[item], list(item[:50]), {item: item}, item + " ", item.upper(), item[: len(item) // 2], None]
        )
    if isinstance(item, dict):
        return trial.one([list(item.items()), list(item), list(item.values()), ["x", item], [item]])
    if isinstance(item, list):
        return trial.one([dict(enumerate(item)), "[]", item[:1], item * 2, (item or [None])[0]])
    return odd(trial)


def mutate_value(trial: Trial, value: Any, within: Callable[[tuple], bool] | None = None) -> Any:
    """Replace, drop, repeat, reorder, rename, retype or exchange something in nested mappings and lists.

    Args:
        trial: gives the choice.
        value: is left as it is.
        within: which places (paths of keys) may be chosen; all if None.
    """
    value = copied(value)
    places = [path for path in _places(value) if path and (within is None or within(path))]
    # the deep places are many: every level is chosen as often
    depth = trial.one(sorted({len(path) for path in places}))
    path = trial.one([path for path in places if len(path) == depth])
    parent, key = _at(value, path[:-1]), path[-1]
    what = trial.pick("odd odd retype retype drop rename repeat reorder exchange add")
    trial.note(f"{what} {'.'.join(map(str, path))[:120]}")
    if what == "odd":
        parent[key] = odd(trial)
        trial.note(f"to {type(parent[key]).__name__} {'huge' if _huge(parent[key]) else ascii(parent[key])[:40]}")
    elif what == "retype":
        parent[key] = _retyped(trial, parent[key])
    elif what == "drop":
        del parent[key]
    elif what == "rename" and isinstance(parent, dict):
        parent[trial.one([str(key).upper(), f" {key}", f"{key}s", "", "x", *TEXTS[:8]])] = parent.pop(key)
    elif what == "repeat" and isinstance(parent, list):
        parent.insert(key, copied(parent[key]))
    elif what == "reorder" and isinstance(parent, list):
        trial.rng.shuffle(parent)
    elif what == "add" and isinstance(parent, dict):
        parent[trial.one(["x", "", "name", "class_path", "__class__", "1"])] = odd(trial)
    else:
        other = trial.one(places)
        taken = copied(_at(value, other))
        if other[: len(path)] != path:
            parent[key] = taken
    return value


def _huge(value: Any) -> bool:
    return isinstance(value, list | dict) or (isinstance(value, int) and abs(value) > 10**300)


def json_bytes(trial: Trial, value: Any) -> bytes:
    """JSON as programs and editors write it, now and then damaged on the way."""
    sys.set_int_max_str_digits(0)
    try:
        text = json.dumps(value, ensure_ascii=trial.often(0.5), indent=trial.one([None, None, 1]))
    finally:
        sys.set_int_max_str_digits(4300)
    how = trial.pick(
        "plain plain plain plain plain plain plain plain bytes utf-8-sig utf-16 latin-1 doubled nested single twice"
    )
    if how != "plain":
        trial.note(how)
    if how == "nested":
        deep = int(trial.one([900, 3_000, 100_000]))
        text = "[" * deep + text + "]" * deep if trial.often(0.5) else '{"a":' * deep + text + "}" * deep
    elif how == "single":
        text = text.replace('"', "'")
    elif how == "twice" and text.startswith("{"):  # a key that stands twice
        text = text[:-1] + "," + text[1:]
    elif how == "doubled":
        text = text + text
    encoding = how if how.startswith(("utf", "latin")) else "utf-8"
    data = text.encode(encoding, "surrogatepass" if encoding != "latin-1" else "replace")
    return mutate_bytes(trial, data) if how == "bytes" else data


# ---------------------------------------------------------------------- command line


def command(*words: Any) -> int:
    """``medvlp`` in this process: its exit status, after a look at what it wrote. Foreign errors come out of it."""
    import contextlib
    import io

    from medvlp.cli import main

    out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        finally:  # Lightning keeps the seed there
            os.environ.clear()
            os.environ.update(before)
    text = err.getvalue()
    assert "Traceback (most" not in text, text[-500:]
    assert code in (0, 1, 2), f"exit status {code}"
    said = [line for line in text.splitlines() if line.startswith("medvlp: error: ")]
    assert len(said) <= 1, said
    assert code != 1 or said or out.getvalue().strip(), "fails without a word"
    return code
