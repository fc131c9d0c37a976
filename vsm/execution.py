"""Plans as the launcher sees them. Standard library only."""

from typing import Any


class Plan:
    """An ordered list of operations with what to exec afterwards."""

    tier: str
    layers: list[dict[str, str]]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able object."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> "Plan":
        """The reverse."""
        raise NotImplementedError

    def describe(self) -> list[str]:
        """One line an operation, in order."""
        raise NotImplementedError


def confine_self(plan: Plan) -> list[dict[str, str]]:
    """Execute a `confine = "self"` plan in this process; the layers in force."""
    raise NotImplementedError
