"""Where a confined start spends its time: the median of every step, by `benchmarks/steps.py`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from confined import Bench, row

HERE = Path(__file__).resolve().parent


def run(rounds: int) -> list[dict[str, Any]]:
    """A row a step, in order, for each tier: forked when asked for, and prepared."""
    plans = {variant: plan.to_json() for variant, plan in Bench(["/bin/true"]).plans.items()}
    done = subprocess.run(
        [sys.executable, "-SI", str(HERE / "steps.py"), str(HERE.parent), str(rounds)],
        input=json.dumps(plans),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    taken: dict[str, dict[str, list[float]]] = json.loads(done.stdout)
    return [
        row("breakdown", variant, step, values=times, unit="ms", bare=times)
        | {"ratio": None, "ratio_to": None}
        for variant, steps in taken.items()
        for step, times in steps.items()
    ]
