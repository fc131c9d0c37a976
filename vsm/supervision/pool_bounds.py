"""How many instances each pool may have now: what its entry says, a command, or what S3 granted.

Runs in the supervisor. A command goes before a grant. A grant is lent: it holds as long as the
S3 that asked for it, for nobody else would raise a bound that has become too low.
"""

from typing import TYPE_CHECKING

from vsm.core.instance_demand import Terms
from vsm.messages import Bound
from vsm.supervision.instance_set import terms_of

if TYPE_CHECKING:
    from vsm.supervision.integration_group import IntegrationGroup


class PoolBounds:
    """The bounds that are not those of the configuration."""

    def __init__(self, group: "IntegrationGroup") -> None:
        self._group = group
        self.granted: dict[str, int] = {}
        self.commanded: dict[str, int] = {}

    def terms_of(self, name: str) -> Terms | None:
        """What an entry says of its instances, within the bound that holds."""
        terms = terms_of(self._group.integrations[name])
        bound = self.commanded.get(name, self.granted.get(name))
        return terms if terms is None or bound is None else terms.within(bound)

    def grant(self, name: str, most: int) -> None:
        """S3 has moved it."""
        self.granted[name] = most
        self.refresh(name)

    def command(self, name: str, most: int | None) -> None:
        """An operator set it; None: it is S3's again, and as the entry says until that moves it."""
        self.granted.pop(name, None)
        self.commanded.pop(name, None)
        if most is not None:
            self.commanded[name] = most
        self.refresh(name)

    def release(self) -> list[str]:
        """S3 is gone: every pool is as configured, or as commanded; whose bound was granted."""
        names = [name for name in self.granted if name in self._group.integrations]
        self.granted.clear()
        for name in names:
            self.refresh(name)
        return names

    def pop(self, name: str, default: None) -> None:
        """Forget an integration."""
        self.granted.pop(name, default)
        self.commanded.pop(name, default)

    def tell(self, name: str) -> None:
        """Tell S1, where the bound is not what its entry says."""
        if name in self.granted or name in self.commanded:
            self._tell(name)

    def refresh(self, name: str) -> None:
        """What is in force for an integration has changed: its entry, a command, a grant."""
        terms, instances = self.terms_of(name), self._group.sets.get(name)
        if terms is not None and instances is not None:
            instances.bind(terms)
        self._tell(name)

    def _tell(self, name: str) -> None:
        terms = self.terms_of(name)
        if terms is not None:
            self._group.hooks.tell_operations(Bound(integration=name, most=terms.most), [])
