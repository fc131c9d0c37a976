"""Plans as they travel and run: operations in order, then what to exec.

Owns the JSON form and the execution, not the decisions (`vsm.confinement.plan`). Standard library
only: the launcher imports it. `execute` runs in the process that is to be confined.
"""

from typing import Any, NamedTuple

from vsm.confinement import network_operations, root_operations
from vsm.confinement import operations as process_operations
from vsm.confinement.operations import Operation, Site
from vsm.linux import namespaces

IN_FORCE = "in force"
ABSENT = "absent"
NOT_REQUIRED = "not required"

_OPERATIONS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        process_operations.JoinCgroups,
        process_operations.EnterNamespaces,
        process_operations.EnterCgroupNamespace,
        process_operations.ForbidUserNamespaces,
        process_operations.SetLimits,
        process_operations.DropPrivileges,
        process_operations.Restrict,
        process_operations.ShieldMiniInit,
        process_operations.FilterSystemCalls,
        network_operations.OpenListeners,
        root_operations.MakeRoot,
        root_operations.Link,
        root_operations.Bind,
        root_operations.Mount,
        root_operations.WriteFile,
        root_operations.EnterRoot,
    )
}


class LayerState(NamedTuple):
    """What a plan expects of a layer.

    Args:
        state: IN_FORCE, ABSENT or NOT_REQUIRED.
        detail: why, or how.
    """

    name: str
    state: str
    detail: str = ""

    def to_json(self) -> dict[str, str]:
        """As `vsm status` shows it."""
        return {"name": self.name, "state": self.state, "detail": self.detail}


class OperationError(Exception):
    """A step failed; whatever was to be confined must not run.

    Args:
        layer: the step's layer, "" for none.
        step: its description.
        reason: the failing call, errno's reason and the path.
    """

    def __init__(self, layer: str, step: str, reason: str) -> None:
        super().__init__(layer, step, reason)
        self.layer = layer
        self.step = step
        self.reason = reason


class Plan(NamedTuple):
    """How one worker is confined and started.

    Args:
        name: the worker's.
        tier: "namespaced" or "landlocked".
        clone_flags: the namespaces that the fork makes.
        operations: in order.
        argv: what to exec, `argv[0]` absolute; empty for a process that confines itself.
        env: the complete environment.
        cwd: inside.
        uid: the uid that the server runs as.
        expected: every layer, as decided when the plan was compiled.
        scratch_dir: a directory to make before and to remove afterwards, or "".
        shared: how many of the first operations every worker of the profile has in common, so
            that a process may execute them before its worker is known.
        wall_time_s: after so long the mini-init kills the server with all that it started; 0 is
            never.
    """

    name: str
    tier: str
    clone_flags: int
    operations: tuple[Operation, ...]
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    uid: int
    expected: tuple[LayerState, ...]
    scratch_dir: str = ""
    shared: int = 0
    wall_time_s: int = 0

    @property
    def listeners(self) -> tuple[tuple[str, int], ...]:
        """(address, port) of each socket that the mini-init will hand out, in order."""
        kinds = (s for s in self.operations if isinstance(s, network_operations.OpenListeners))
        return tuple(one for step in kinds for one in step.listeners)

    @property
    def reported(self) -> bool:
        """Whether the mini-init will hand out the listener of its system call filter."""
        kind = process_operations.FilterSystemCalls
        return any(isinstance(step, kind) and step.reported for step in self.operations)

    @property
    def layers(self) -> list[dict[str, str]]:
        """What the plan expects; what happened is in `Spawned.layers`."""
        return [layer.to_json() for layer in self.expected]

    def describe(self) -> list[str]:
        """One line a step, in order."""
        fork = namespaces.describe(self.clone_flags)
        first = [f"fork into new namespaces: {fork}"] if fork else ["fork"]
        last = [f"exec {' '.join(self.argv)}"] if self.argv else []
        if self.wall_time_s:
            last.append(f"kill it after {self.wall_time_s} s")
        scratch = [f"make {self.scratch_dir}, remove it at exit"] if self.scratch_dir else []
        return [*scratch, *first, *(step.describe() for step in self.operations), *last]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able object; `from_json` reverses it."""
        table = self._asdict()
        table["operations"] = [_encode(step) for step in self.operations]
        return table

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> "Plan":
        """The plan that `to_json` wrote; TypeError or KeyError if it is none."""
        fields = _thaw(table)
        steps = tuple(_decode(step) for step in fields.pop("operations"))
        return cls(operations=steps, **fields)

    def changes_from(self, base: "Plan") -> dict[str, Any]:
        """What `base.changed` needs to make this plan: little, where they share a profile."""
        own, other = self._asdict(), base._asdict()
        table = {key: value for key, value in own.items() if value != other[key]}
        known = {(type(step), step): index for index, step in enumerate(base.operations)}
        table["operations"] = [
            index if (index := known.get((type(step), step), -1)) >= 0 else _encode(step)
            for step in self.operations
        ]
        return table

    def changed(self, table: dict[str, Any]) -> "Plan":
        """The plan whose `changes_from` this one they are."""
        fields = _thaw(table)
        steps = tuple(
            self.operations[step] if isinstance(step, int) else _decode(step)
            for step in fields.pop("operations")
        )
        return self._replace(operations=steps, **fields)


def execute(plan: Plan, site: Site) -> list[dict[str, str]]:
    """Run every operation in this process that has not been run ahead at this site.

    Returns:
        The layers in force: what happened, not what was planned.

    Raises:
        OperationError: at the first step that fails.
    """
    ahead = plan.operations[: len(site.executed)]
    if not same_steps(tuple(site.executed), ahead):
        raise OperationError("", plan.name, "this process was prepared for another plan")
    execute_steps(plan.operations[len(ahead) :], site)
    return [_confirm(layer, plan, site) for layer in plan.expected]


def same_steps(one: tuple[Operation, ...], other: tuple[Operation, ...]) -> bool:
    """Equality: tuples of two kinds may hold the same."""
    return one == other and list(map(type, one)) == list(map(type, other))


def execute_steps(steps: tuple[Operation, ...], site: Site) -> None:
    """Run some operations and keep what they report; OperationError at the first that fails."""
    for step in steps:
        try:
            detail = step.execute(site)
        except OSError as error:
            raise OperationError(step.layer, step.describe(), _reason(error)) from error
        site.executed.append(step)
        if detail:
            site.reports.append((step.layer, detail))


def confine_self(plan: Plan) -> list[dict[str, str]]:
    """Execute a `confine = "self"` plan in this process; returns the layers in force."""
    return execute(plan, Site())


def _confirm(layer: LayerState, plan: Plan, site: Site) -> dict[str, str]:
    """Join the plan's word and what the steps of the layer reported."""
    if layer.state != IN_FORCE:
        return layer.to_json()
    reports = [detail for name, detail in site.reports if name == layer.name]
    parts = [part for part in (layer.detail, *reports) if part]
    if not parts:
        raise OperationError(layer.name, plan.name, "no step applied this layer")
    return LayerState(layer.name, IN_FORCE, "; ".join(parts)).to_json()


def _encode(step: Operation) -> dict[str, Any]:
    return {"operation": type(step).__name__, **step._asdict()}


def _thaw(table: dict[str, Any]) -> dict[str, Any]:
    fields = dict(table)
    if "expected" in fields:
        fields["expected"] = tuple(LayerState(*layer) for layer in fields["expected"])
    if "argv" in fields:
        fields["argv"] = tuple(fields["argv"])
    return fields


def _decode(table: dict[str, Any]) -> Operation:
    fields = dict(table)
    kind = _OPERATIONS[fields.pop("operation")]
    step: Operation = kind(**{name: _freeze(value) for name, value in fields.items()})
    return step


def _freeze(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{text} ({error.filename})" if error.filename else text
