"""Generated code, as text: what `vsm.run_code` does in the worker.

Loaded by the runner, so that every worker has it; runs confined, by the interpreter's own import
machinery.
"""

import sys
from collections.abc import Mapping
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec

NAME = "generated"
RESULT = "result"


class _Text(InspectLoader):
    """Loads one module from its text; tracebacks show its lines."""

    def __init__(self, text: str) -> None:
        self._text = text

    def get_source(self, fullname: str) -> str:  # noqa: ARG002 - there is only one
        """The text."""
        return self._text


def run_text(text: str, inputs: Mapping[str, object]) -> object:
    """Run it as a module that begins with `inputs`; what it leaves as `result`."""
    spec = ModuleSpec(NAME, _Text(text), origin="<generated>")
    module = sys.modules[NAME] = module_from_spec(spec)
    vars(module).update(inputs)
    loader = spec.loader
    if isinstance(loader, _Text):
        loader.exec_module(module)
    return vars(module).get(RESULT)
