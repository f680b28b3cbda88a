"""Seeds derived from what they are for, independent of the order of calls and the number of processes."""

import os

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of splitmix64


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def derive_seed(*parts: int) -> int:
    """Mix any integers, such as (run seed, epoch, item), into one seed in [0, 2^63); bits and order all matter.

    The mixing is that of splitmix64 (Steele, Lea and Flood 2014) in Python integers: the same on every platform.
    Negative integers count modulo 2^64.
    """
    state = _mix(_GOLDEN)
    for part in parts:
        state = _mix((state + _GOLDEN + (part & _MASK)) & _MASK)
    # with the number of parts, so that (1,) and (1, 0) differ
    return _mix((state + len(parts)) & _MASK) >> 1


def run_seed() -> int:
    """Return the seed that the run was started with (``seed_everything``); 0 if none was given."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
