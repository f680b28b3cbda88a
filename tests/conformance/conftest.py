"""Says at the end of a run which reference files have no adapter yet."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def pytest_terminal_summary(terminalreporter):
    sys.path.insert(0, str(HERE))
    from adapters import ADAPTERS

    roles = json.loads((HERE / "vectors" / "roles.json").read_text())
    missing = sorted(set(roles) - set(ADAPTERS))
    terminalreporter.write_sep("-", f"conformance: {len(ADAPTERS)} of {len(roles)} reference files covered")
    terminalreporter.write_line("not covered yet: " + ", ".join(missing))
