"""Our functions against inputs and outputs of the published implementations."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from adapters import ADAPTERS

FOLDER = Path(os.environ.get("MEDVLP_VECTORS", Path(__file__).parent / "vectors"))
ROLES = json.loads((FOLDER / "roles.json").read_text())
TOLERANCE = 1e-5

PARTIAL = {
    # Losses of methods that are not here yet.
    "gradients": {key for key in ROLES["gradients"]["outputs"] if key.startswith("mflag_")},
}

ALSO = {"maco_contrastive": ["maco_mae_sr0_rawpix"]}
"""Files whose inputs an adapter needs besides its own, under the file's name and two underscores."""


def inputs_of(stem: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{stem}.npz", allow_pickle=False) as file:
        found = {key: file[key] for key in ROLES[stem]["inputs"]}
    others = {key.split("__")[0] for key in ROLES[stem]["outputs"]} if stem == "gradients" else ALSO.get(stem, ())
    for other in sorted(others):
        if other in ROLES:
            found.update({f"{other}__{key}": value for key, value in inputs_of(other).items()})
    return found


@pytest.mark.parametrize("stem", sorted(ADAPTERS))
def test_reproduces_the_reference_outputs(stem: str) -> None:
    with np.load(FOLDER / f"{stem}.npz", allow_pickle=False) as file:
        expected = {key: file[key] for key in ROLES[stem]["outputs"]}
    got = ADAPTERS[stem](inputs_of(stem))
    assert set(got) == set(expected) - PARTIAL.get(stem, set())
    for key, value in got.items():
        want = expected[key]
        assert np.shape(value) == want.shape, key
        if want.dtype.kind in "iubU":
            np.testing.assert_array_equal(value, want, err_msg=key)
        else:
            # Absolute below magnitude 1, relative above.
            np.testing.assert_array_less(
                np.abs(np.asarray(value, np.float64) - want), TOLERANCE * np.maximum(1, np.abs(want)) + 1e-30, key
            )


def test_every_partial_adapter_says_why() -> None:
    for stem in PARTIAL:
        assert len((ADAPTERS[stem].__doc__ or "").split()) > 5


def test_no_adapter_without_a_file() -> None:
    assert set(ADAPTERS) <= set(ROLES)
