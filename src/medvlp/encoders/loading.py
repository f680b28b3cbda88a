"""Files of foreign weights: read as tensors alone, matched by name, checked for values that are numbers."""

import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medvlp.compat import sparse_parts, tree_leaves
from medvlp.errors import CheckpointError
from medvlp.io.paths import local_file

WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch's wrappers (compile, FSDP, activation checkpointing) put anywhere into the names of weights."""


def is_plain(value: Any, words: str, limit: float, containers: tuple[type, ...]) -> bool:
    """Whether a value from a file is None, a number up to ``limit``, a match of ``words``, or a container of such."""
    if isinstance(value, str):
        return re.fullmatch(words, value, re.ASCII) is not None
    if isinstance(value, containers):
        parts: Any = [*value, *value.values()] if isinstance(value, dict) else value
        return all(is_plain(part, words, limit, containers) for part in parts)
    return value is None or (isinstance(value, bool | int | float) and abs(value) <= limit)


def read_plain(path: Path, old: bool = False) -> Any:
    """Read a torch file as plain values and tensors, which stay in the file until they are used.

    Args:
        path: the file; a zip archive, of which every byte is checked.
        old: take a file of torch before 1.6 too, which has nothing to check it by.

    Raises:
        CheckpointError: says in a few words what is wrong with it, without the file's name.
    """
    try:
        packed = not old or zipfile.is_zipfile(path)
        members = _sound_members(path) if packed else []
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
        fits = not packed or _fits(members, [leaf for leaf in tree_leaves(content) if isinstance(leaf, Tensor)])
    except CheckpointError:
        raise
    except Exception as error:  # whatever torch and pickle raise on bytes of any kind
        kind = type(error).__name__
        raise CheckpointError(kind if path.stat().st_size else "empty") from error
    if not fits:
        raise CheckpointError("its tensors are of other sizes than it says")
    return content


def _sound_members(path: Path) -> list[zipfile.ZipInfo]:
    """Return the entries of a zip file, none compressed, repeated or corrupt, which torch does not check."""
    with zipfile.ZipFile(path) as archive:
        members, broken = archive.infolist(), archive.testzip()
    if broken is not None:
        raise CheckpointError(f"{broken} does not match its checksum")
    if len({member.filename for member in members}) < len(members) or any(m.compress_type for m in members):
        raise CheckpointError("repacked by another program: it holds an entry twice, or compressed")
    return members


def _fits(members: list[zipfile.ZipInfo], tensors: list[Tensor]) -> bool:
    """Whether the stored numbers take as many bytes as the tensors do; torch would read what follows them."""
    stored = {m.filename.rpartition("/")[2]: m.file_size for m in members if m.filename.split("/")[1:2] == ["data"]}
    needed: dict[int, int] = {}
    for tensor in (part for whole in tensors for part in _dense_parts(whole)):
        needed.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
    sizes = [size for size in needed.values() if size]
    if set(stored) != {str(number) for number in range(len(stored))}:  # old files number them by address
        return sorted(sizes) == sorted(size for size in stored.values() if size)
    return sizes == [stored[key] for key in sorted(stored, key=int) if stored[key]]


def _dense_parts(tensor: Tensor) -> list[Tensor]:
    if tensor.is_meta:
        return []
    if tensor.layout == torch.sparse_coo:
        return sparse_parts(tensor)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise CheckpointError("holds a sparse, nested or quantised tensor; expected dense tensors of real numbers")
    return [tensor]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read tensors from a safetensors or torch file, without running anything in it.

    Names below other keys are joined with dots ("state_dict.module.conv1.weight").

    Raises:
        CheckpointError: the file is missing, or holds anything but tensors and plain values.
    """
    path = local_file(path, "weights file (.safetensors or .pth)")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = read_plain(path, old=True)
    except Exception as error:
        reason = str(error) if isinstance(error, CheckpointError) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as plain weights ({reason}); convert it to safetensors where you trust its origin"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__} instead of named weights")
    return dict(_tensors(content, ""))


def _tensors(content: Mapping[Any, Any], above: str) -> Iterable[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            yield above + key, value
        elif isinstance(key, str) and isinstance(value, Mapping):
            yield from _tensors(value, f"{above}{key}.")


def find_prefix(
    path: str | Path,
    stored: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    chosen: str | None = None,
) -> tuple[str, dict[str, str]]:
    """Find the prefix below which a file holds a network's weights.

    Args:
        path: the file, for messages.
        stored: the file's tensors.
        expected: the network's own weights.
        aliases: possible name in the file → name in the network.
        chosen: the prefix to take; None finds it.

    Returns:
        The prefix, and the name in the file of each weight below it.

    Raises:
        CheckpointError: several prefixes hold the whole network with different values, or not the chosen one.
    """
    below: dict[str, dict[str, str]] = defaultdict(dict)
    for key in stored:
        name = WRAPPERS.sub("", key)
        for start in (0, *(match.end() for match in re.finditer(r"\.", name))):
            target = aliases.get(name[start:])
            if target is not None and not _same(stored[below[name[:start]].setdefault(target, key)], stored[key]):
                raise CheckpointError(
                    f"{path}: holds two weights for {target!r} that differ: {below[name[:start]][target]!r}, {key!r}"
                )
    if chosen is not None:
        chosen = WRAPPERS.sub("", chosen)
        if chosen not in below:
            raise CheckpointError(
                f"{path}: no weight of the image encoder below image.weights_prefix {chosen!r}; its names start with "
                f"{', '.join(sorted({key.split('.')[0] for key in stored})[:5]) or 'nothing'}"
            )
        return chosen, below[chosen]

    def fits(sources: dict[str, str]) -> int:
        return sum(stored[source].shape == expected[name].shape for name, source in sources.items())

    whole = len([name for name in expected if not optional(name)])
    complete = [
        prefix
        for prefix, sources in below.items()
        if sum(not optional(name) for name in sources) == whole
        and fits(sources) >= len(sources) - sum(name.endswith("pos_embed") for name in sources)
    ]
    if not complete:
        best = max(below, key=lambda prefix: (len(below[prefix]), fits(below[prefix])), default="")
        return best, below.get(best, {})
    first = below[complete[0]]
    for other in complete[1:]:
        if any(
            not _same(stored[first[name]], stored[source]) for name, source in below[other].items() if name in first
        ):
            raise CheckpointError(
                f"{path}: holds several networks that fit; set image.weights_prefix to one of: "
                f"{', '.join(repr(prefix) for prefix in sorted(complete))}"
            )
    return complete[0], first


def optional(name: str) -> bool:
    """Whether a weight may be missing: a counter that older files lack and nothing reads."""
    return name.endswith("num_batches_tracked")


def _same(first: Tensor, second: Tensor) -> bool:
    plain = first.layout == second.layout == torch.strided and not (first.is_meta or second.is_meta)
    return first is second or (plain and torch.equal(first, second))


def check_kind(where: str, weights: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless values of a file, by the network's names, are dense tensors like its weights.

    ``where`` starts the message.
    """
    for name, value in weights.items():
        problem = ""
        if not isinstance(value, Tensor):
            problem = f"a {type(value).__name__}"
        elif value.is_meta or value.layout != torch.strided or value.is_quantized or value.is_nested:
            problem = "a tensor without data" if value.is_meta else "a sparse, nested or quantised tensor"
        elif value.is_complex() or (
            name in expected and expected[name].is_floating_point() and not value.is_floating_point()
        ):
            problem = str(value.dtype)
        if problem:
            raise CheckpointError(f"{where}{name!r} is {problem}; expected a dense tensor of real numbers")


def check_finite(where: str, module: nn.Module) -> None:
    """Raise CheckpointError if a weight or buffer of a loaded module is NaN or infinite; ``where`` starts the text."""
    state = module.state_dict()
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{where}{len(bad)} of {len(state)} weights hold NaN or infinite values (first: {bad[0]}); the run that "
            "wrote them diverged or the file is damaged: use an earlier checkpoint"
        )
