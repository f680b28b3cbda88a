"""Init arguments of a data module that come from the class that reads its data."""

import functools
import inspect
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import lightning as L

_Parameter = inspect.Parameter


def parameters(kind: type) -> dict[str, _Parameter]:
    """Return the init arguments of a class by name, without ``self`` and ``**kwargs``."""
    signature = inspect.signature(kind, eval_str=True)
    return {name: p for name, p in signature.parameters.items() if p.kind is not _Parameter.VAR_KEYWORD}


def adopt_options(module: type, reader: type, extra: Mapping[str, tuple[Any, Any]] | None = None) -> None:
    """Give a data module the init arguments of its reader, so that they are declared and documented once.

    jsonargparse and ``help()`` see them in the signature, with the reader's docstring.

    Args:
        module: its constructor takes all of them as ``**kwargs``.
        reader: the corpus or table that is read; arguments that the module has as well are left to the module.
        extra: further arguments, each a type and a default, which come before the reader's options.
    """
    declared: dict[str, _Parameter] = {}
    for base in module.__mro__:
        if issubclass(base, L.LightningDataModule) and "__init__" in vars(base):
            for name, parameter in parameters(base).items():
                if parameter.kind is _Parameter.KEYWORD_ONLY:
                    declared.setdefault(name, parameter)
    added = {n: _Parameter(n, _Parameter.KEYWORD_ONLY, annotation=t, default=d) for n, (t, d) in (extra or {}).items()}
    options = {n: _without_path(p) for n, p in parameters(reader).items() if n not in declared}
    required = {n: p for n, p in options.items() if p.default is _Parameter.empty}
    ordered = required | added | options | {n: p for n, p in declared.items() if n not in added}
    initialise = module.__init__  # type: ignore[misc]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)

    __init__.__doc__ = reader.__doc__
    itself = _Parameter("self", _Parameter.POSITIONAL_OR_KEYWORD)
    __init__.__signature__ = inspect.Signature([itself, *ordered.values()])  # type: ignore[attr-defined]
    module.__init__ = __init__  # type: ignore[misc]


def _without_path(parameter: _Parameter) -> _Parameter:
    """Configs hold paths as text."""
    types = get_args(parameter.annotation)
    if Path not in types:
        return parameter
    return parameter.replace(annotation=functools.reduce(operator.or_, (t for t in types if t is not Path)))
