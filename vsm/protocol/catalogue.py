"""What all integrations offer, merged under public names and kept as ready bytes.

Pure. A tool or prompt is called `PREFIX__NAME`; an empty prefix leaves the name bare, and a
clash then drops every claimant and says so in `notes`. Resource URIs are never rewritten:
one that several integrations claim is listed to nobody but those who see only one of them. Names
and descriptions are foreign text and go through unchanged; nothing here interprets them.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import Raw

from vsm.protocol import jsonrpc
from vsm.protocol.jsonrpc import DecodeError, Object
from vsm.protocol.parameter_headers import HeaderRule, rules_of
from vsm.protocol.tables import LISTS

SEPARATOR: Final = "__"
MAX_NAME_CHARS: Final = 64
MAX_PAGES: Final = 100
MAX_ITEMS: Final = 10_000
MAX_URI_CHARS: Final = 8192
MAX_KEY_CHARS: Final = 256
_DIGEST_CHARS: Final = 8
_KIND_OF_LIST: Final = {
    "tools/list": "tool",
    "prompts/list": "prompt",
    "resources/list": "resource",
    "resources/templates/list": "template",
}
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")
_EXPRESSION = re.compile(r"\{[^{}]*\}")


@dataclass
class Surface:
    """What one integration offers: its lists as it sent them, each item's members raw.

    Args:
        prefix: what its names start with; "" leaves them bare.
        suspended: what of it nobody may see or use, and why; keys as in `suspension_key`.
    """

    prefix: str
    lists: dict[str, list[Object]] = field(default_factory=dict)
    suspended: Mapping[str, str] = field(default_factory=dict)
    serves_resources: bool = False


@dataclass(frozen=True)
class Entry:
    """Where a public name leads: the integration and the name that its server knows.

    Args:
        header_rules: which arguments of a tool HTTP clients repeat in headers.
    """

    integration: str
    name: str
    raw_name: Raw
    header_rules: tuple[HeaderRule, ...] = ()


@dataclass(frozen=True)
class Template:
    """A resource template: the literal parts of a URI, in order, and who serves it.

    Args:
        pattern: as its server wrote it.
    """

    integration: str
    literals: tuple[str, ...]
    pattern: str = ""

    @property
    def weight(self) -> int:
        """How much of a URI it pins down."""
        return sum(map(len, self.literals))

    def matches(self, uri: str) -> bool:
        """Whether `uri` has the literal parts in order; linear, whatever the template."""
        first, *middle, last = self.literals if len(self.literals) > 1 else (*self.literals, "")
        end = len(uri) - len(last)
        if not uri.startswith(first) or not uri.endswith(last) or end < len(first):
            return False
        position = len(first)
        for literal in middle:
            found = uri.find(literal, position, end)
            if found < 0:
                return False
            position = found + len(literal)
        return True


@dataclass(frozen=True)
class Catalogue:
    """The merged whole.

    Args:
        contested: resources that several claim: who, and each one's item.
        items: what each list holds, in the order of `tools`, `prompts`, `resources`, `templates`.
        pages: results of list requests, without their last brace.
    """

    tools: dict[str, Entry] = field(default_factory=dict)
    prompts: dict[str, Entry] = field(default_factory=dict)
    resources: dict[str, str] = field(default_factory=dict)
    contested: dict[str, dict[str, Object]] = field(default_factory=dict)
    templates: tuple[Template, ...] = ()
    servers: tuple[str, ...] = ()
    items: Mapping[str, Sequence[Object]] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def restricted(
        self, serves: Callable[[str], bool], offers: Callable[[str], bool]
    ) -> "Catalogue":
        """What a client sees that may not see everything.

        A name that clashes stays unserved for everybody; a resource that several claim is no
        clash to a client that sees one of them.

        Args:
            serves: whether it sees an integration.
            offers: whether it sees a tool of that name.
        """
        items = self.items
        tools = [
            (name, entry, item)
            for (name, entry), item in zip(self.tools.items(), items["tools/list"], strict=True)
            if serves(entry.integration) and offers(name)
        ]
        prompts = [
            (name, entry, item)
            for (name, entry), item in zip(self.prompts.items(), items["prompts/list"], strict=True)
            if serves(entry.integration)
        ]
        resources = [
            (uri, owner, item)
            for (uri, owner), item in zip(
                self.resources.items(), items["resources/list"], strict=True
            )
            if serves(owner)
        ]
        contested: dict[str, dict[str, Object]] = {}
        for uri, claims in self.contested.items():
            seen = {who: item for who, item in claims.items() if serves(who)}
            if len(seen) > 1:
                contested[uri] = seen
            resources += [(uri, who, item) for who, item in seen.items() if len(seen) == 1]
        templates = [
            (template, item)
            for template, item in zip(
                self.templates, items["resources/templates/list"], strict=True
            )
            if serves(template.integration)
        ]
        return _catalogue(
            {
                "tools/list": [item for _, _, item in tools],
                "prompts/list": [item for _, _, item in prompts],
                "resources/list": [item for _, _, item in resources],
                "resources/templates/list": [item for _, item in templates],
            },
            tools={name: entry for name, entry, _ in tools},
            prompts={name: entry for name, entry, _ in prompts},
            resources={uri: owner for uri, owner, _ in resources},
            contested=contested,
            templates=tuple(template for template, _ in templates),
            servers=tuple(filter(serves, self.servers)),
        )

    def legacy_page(self, method: str) -> bytes:
        """The result of a legacy list request."""
        return self.pages[method] + b"}"

    def modern_page(self, method: str, ttl_ms: int) -> bytes:
        """The result of a modern list request."""
        tail = b',"resultType":"complete","ttlMs":%d,"cacheScope":"private"}'
        return self.pages[method] + tail % ttl_ms

    def resource_owner(self, uri: str) -> str | tuple[str, ...]:
        """The integration that serves `uri`, or all that claim it (none: an empty tuple).

        A template itself, which is what a completion names, belongs to whoever listed it.
        """
        if len(uri) > MAX_URI_CHARS:
            return ()
        if uri in self.contested:
            return tuple(self.contested[uri])
        if uri in self.resources:
            return self.resources[uri]
        fits = [template for template in self.templates if template.pattern == uri]
        fits = fits or [template for template in self.templates if template.matches(uri)]
        best = max((template.weight for template in fits), default=0)
        owners = {template.integration for template in fits if template.weight == best}
        claimants = tuple(sorted(owners)) or self.servers
        return claimants[0] if len(claimants) == 1 else tuple(sorted(owners))


def public_name(prefix: str, name: str, integration: str) -> str:
    """The name under which clients see `name`: at most 64 of [A-Za-z0-9_-], stable."""
    whole = f"{prefix}{SEPARATOR}{name}" if prefix else name
    fit = _UNFIT.sub("_", whole)
    if fit == whole and len(fit) <= MAX_NAME_CHARS:
        return fit
    digest = hashlib.sha256(f"{integration}\0{name}".encode(errors="surrogatepass")).hexdigest()
    return f"{fit[: MAX_NAME_CHARS - _DIGEST_CHARS - 1]}_{digest[:_DIGEST_CHARS]}"


def suspension_key(method: str, name: str) -> str:
    """What an item of a list is called among the suspended: its kind and its name, bounded.

    Shortened ones have the full length and others less, so that no name can pass for another.
    """
    key = f"{_KIND_OF_LIST[method]} {name}"
    if len(key) < MAX_KEY_CHARS:
        return key
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    return f"{key[: MAX_KEY_CHARS - len(digest) - 1]} {digest}"


def _is_suspended(method: str, name: str, surface: Surface) -> bool:
    return bool(surface.suspended) and suspension_key(method, name) in surface.suspended


def parse_page(method: str, result: Raw) -> tuple[list[Object], str | None]:
    """The items of one page of a list, and the cursor of the next.

    Raises:
        DecodeError: it is not a list of objects.
    """
    members = jsonrpc.members(result)
    try:
        items = msgspec.json.decode(members.get(LISTS[method], b"[]"), type=list[Object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DecodeError(jsonrpc.INVALID_PARAMS, f"{method}: expected a list of objects") from None
    return items, jsonrpc.text(members, "nextCursor")


def merge(surfaces: Mapping[str, Surface]) -> Catalogue:
    """Merge what the integrations offer, in the order of their names."""
    notes: list[str] = []
    tools, tool_items = _merge_named("tools/list", surfaces, notes)
    prompts, prompt_items = _merge_named("prompts/list", surfaces, notes)
    owners, contested, resource_items = _merge_resources(surfaces, notes)
    templates, template_items = _merge_templates(surfaces)
    merged = {
        "tools/list": tool_items,
        "prompts/list": prompt_items,
        "resources/list": resource_items,
        "resources/templates/list": template_items,
    }
    return _catalogue(
        merged,
        tools=tools,
        prompts=prompts,
        resources=owners,
        contested=contested,
        templates=templates,
        servers=tuple(sorted(name for name, s in surfaces.items() if s.serves_resources)),
        notes=tuple(notes),
    )


def _catalogue(items: dict[str, list[Object]], **rest: Any) -> Catalogue:  # noqa: ANN401 - as its
    pages = {method: _page(LISTS[method], listed) for method, listed in items.items()}
    return Catalogue(items=items, pages=pages, **rest)


def _page(key: str, items: Iterable[Object]) -> bytes:
    return b'{"%b":[%b]' % (key.encode(), b",".join(jsonrpc.encode(item) for item in items))


def _named_items(
    method: str, surfaces: Mapping[str, Surface], notes: list[str]
) -> Iterable[tuple[str, Entry, Object]]:
    for integration in sorted(surfaces):
        surface = surfaces[integration]
        seen: set[str] = set()
        for item in surface.lists.get(method, ()):
            name = jsonrpc.text(item, "name")
            if not name or name in seen:
                notes.append(f"{integration}: {method}: an item without a name of its own")
                continue
            seen.add(name)
            if _is_suspended(method, name, surface):
                continue
            public = public_name(surface.prefix, name, integration)
            rules = rules_of(item.get("inputSchema"))
            yield public, Entry(integration, name, item["name"], rules), item


def _merge_named(
    method: str, surfaces: Mapping[str, Surface], notes: list[str]
) -> tuple[dict[str, Entry], list[Object]]:
    claims: dict[str, list[tuple[Entry, Object]]] = {}
    for public, entry, item in _named_items(method, surfaces, notes):
        claims.setdefault(public, []).append((entry, item))
    entries: dict[str, Entry] = {}
    items: list[Object] = []
    for public, claimants in claims.items():
        if len(claimants) > 1:
            who = ", ".join(entry.integration for entry, _ in claimants)
            notes.append(f"{public}: claimed by {who}, served by none; give them a prefix")
            continue
        entry, item = claimants[0]
        entries[public] = entry
        items.append({**item, "name": jsonrpc.raw_of(public)})
    return entries, items


def _merge_resources(
    surfaces: Mapping[str, Surface], notes: list[str]
) -> tuple[dict[str, str], dict[str, dict[str, Object]], list[Object]]:
    claims: dict[str, list[tuple[str, Object]]] = {}
    for integration in sorted(surfaces):
        own: dict[str, Object] = {}
        surface = surfaces[integration]
        for item in surface.lists.get("resources/list", ()):
            uri = jsonrpc.text(item, "uri")
            if uri and len(uri) <= MAX_URI_CHARS:
                own.setdefault(uri, item)
        for uri in [uri for uri in own if _is_suspended("resources/list", uri, surface)]:
            del own[uri]
        for uri, item in own.items():
            claims.setdefault(uri, []).append((integration, item))
    contested = {uri: dict(c) for uri, c in claims.items() if len(c) > 1}
    notes.extend(
        f"{uri}: claimed by {', '.join(who)}, served where a client sees one of them"
        for uri, who in contested.items()
    )
    single = {uri: c[0] for uri, c in claims.items() if len(c) == 1}
    return (
        {uri: who for uri, (who, _) in single.items()},
        contested,
        [i for _, i in single.values()],
    )


def _merge_templates(surfaces: Mapping[str, Surface]) -> tuple[tuple[Template, ...], list[Object]]:
    templates: list[Template] = []
    items: list[Object] = []
    for integration in sorted(surfaces):
        seen: set[str] = set()
        for item in surfaces[integration].lists.get("resources/templates/list", ()):
            pattern = jsonrpc.text(item, "uriTemplate")
            if not pattern or len(pattern) > MAX_URI_CHARS or pattern in seen:
                continue
            seen.add(pattern)
            if _is_suspended("resources/templates/list", pattern, surfaces[integration]):
                continue
            literals = tuple(_EXPRESSION.split(pattern))
            templates.append(Template(integration, literals, pattern))
            items.append(item)
    return tuple(templates), items
