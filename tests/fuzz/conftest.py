"""Runs the trials of a kind of mutations; see ``test_tables.py`` and its neighbours."""

import math

import pytest
from mutations import Kind, run


def _names(kind):
    return {getattr(kind, "name", "")}.union(*map(_names, kind.__subclasses__()))


@pytest.fixture
def mutations(request, tmp_path_factory):
    """``mutations(KindClass)`` runs its share of all mutations and fails with the seeds of those that went wrong."""

    def go(kind_class):
        only = request.config.getoption("--mutation")
        name, _, seed = only.rpartition("-")
        if only and name not in _names(Kind):
            pytest.fail(f"--mutation {only}: unknown kind {name!r}; expected one of: {', '.join(sorted(_names(Kind)))}")
        if only and name != kind_class.name:
            pytest.skip(f"--mutation {only}")
        count = math.ceil(request.config.getoption("--mutations") * kind_class.share / 300)
        kind = kind_class(tmp_path_factory.mktemp("sound") / kind_class.name)
        failures = run(kind, [int(seed)] if only else range(count))
        print(f"{kind.name}: {count} mutations")
        assert not failures, "\n".join([f"{len(failures)} of {count}; again with --mutation KIND-SEED:", *failures])

    return go
