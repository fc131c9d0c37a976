"""Where a request leads: the integration that a name or a URI belongs to, or why to none.

Pure but for a counter of refusals and for who was listed which resources. Runs in S1, for every
request that is routed.
"""

from collections import defaultdict
from typing import NoReturn, cast

from vsm.gateway.call import Call
from vsm.gateway.client import Client
from vsm.gateway.fleet import Fleet
from vsm.gateway.instances import Instances
from vsm.gateway.integration import Integration, Server
from vsm.gateway.listings import Listings
from vsm.gateway.upstream import Upstream
from vsm.gateway.views import View
from vsm.protocol import jsonrpc
from vsm.protocol.catalogue import SEPARATOR, Catalogue, Entry, public_name, suspension_key
from vsm.protocol.jsonrpc import DecodeError, Object
from vsm.protocol.tables import META_VERSION, Era


class RequestError(DecodeError):
    """A request cannot be served: `code`, `message` and `data` go into the answer.

    Args:
        unserved: it was demand that nobody serves, and is counted as such.
    """

    def __init__(
        self, code: int, message: str, data: object = None, *, unserved: bool = False
    ) -> None:
        super().__init__(code, message)
        self.data = data
        self.unserved = unserved


class StartingError(Exception):
    """What the request needs is still starting.

    Args:
        names: the integrations to wait for. limit_s: for so long at most; None: as long as calls.
    """

    def __init__(self, names: list[str], limit_s: float | None = None) -> None:
        super().__init__(names)
        self.names = names
        self.limit_s = limit_s


class Finder:
    """Finds integrations by what a request names.

    Args:
        fleet: the integrations and their merged catalogue.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._listings: defaultdict[View | None, Listings] = defaultdict(Listings)

    def entry(
        self, method: str, params: Object, entries: dict[str, Entry], view: View | None
    ) -> Entry:
        """The tool or prompt that `params.name` means, among those that a client sees.

        Raises:
            RequestError: there is none. StartingError: there may be one soon.
        """
        name = jsonrpc.text(params, "name")
        if name is None:
            raise RequestError(jsonrpc.INVALID_PARAMS, f"{method}: params.name is a string")
        entry = entries.get(name)
        if entry is None:
            self._raise_unknown(method, name, view)
        return entry

    def _raise_unknown(self, method: str, name: str, view: View | None) -> NoReturn:
        """Say why a name leads nowhere: its integration is away, or there is no such name.

        Only those are waited for that could have the name and of whom no list is known.
        """
        seen = self.seen(view)
        unknown = []
        for integration in seen.values():
            prefix = integration.settings.prefix
            if prefix and not name.startswith(prefix + SEPARATOR):
                continue
            if integration.is_unknown:
                unknown.append(integration.settings.name)
            elif prefix and not integration.takes_calls and integration.is_settled:
                self.raise_unavailable(integration)
        if unknown:
            raise StartingError(unknown)
        kind = "tool" if method == "tools/call" else "prompt"
        if view is None or kind == "prompt" or view.offers(name):
            _raise_suspended(kind, name, seen)
        text = f"Unknown {kind}: {name[:200]}"
        raise RequestError(jsonrpc.INVALID_PARAMS, text, unserved=True)

    def seen(self, view: View | None) -> dict[str, Integration]:
        """The integrations that a client sees."""
        found = self._fleet.integrations
        return {n: i for n, i in found.items() if view is None or view.serves(n)}

    def only_upstream(self, client: Client) -> Upstream | None:
        """The server of the only integration that a client sees, if it speaks the client's era."""
        seen = list(self.seen(client.view).values())
        server: Server | None = seen[0] if len(seen) == 1 else None
        if server is not None and seen[0].instances is not None:
            server = seen[0].instances.of(client)
        upstream = None if server is None else server.upstream
        if upstream is None or client.initialized is not (upstream.era is Era.LEGACY):
            return None
        return upstream

    def catalogue(self, client: Client) -> Catalogue:
        """The merged catalogue as this client sees it."""
        view, whole = client.view, self._fleet.catalogue
        return whole if view is None else view.of(whole)

    def lists_resources(self, client: Client) -> None:
        """A client is listed resources: remember it for those that others will claim later."""
        listings = self._seen_listings(client)
        if not client.listed or client.listed[-1] != listings.turn:
            client.listed.append(listings.turn)

    def _seen_listings(self, client: Client) -> Listings:
        listings = self._listings[client.view]
        listings.see(self.catalogue(client))
        return listings

    def raise_unavailable(self, integration: Integration) -> None:
        """Say why an integration cannot be called.

        Raises:
            RequestError: it cannot. StartingError: it can soon.
        """
        if not integration.is_settled:
            raise StartingError([integration.settings.name])
        integration.totals["refused"] += 1
        text, data = integration.unavailable, integration.availability
        raise RequestError(jsonrpc.UNAVAILABLE, text, data, unserved=True)

    def instance_of(
        self, integration: Integration, client: Client, *, quietly: bool = False
    ) -> Upstream:
        """The server of an integration with several to which a client's call goes.

        Args:
            integration: that has several.
            client: whose call it is.
            quietly: it is no call, so that nobody would hear that a state was lost.

        Raises:
            RequestError: it gets none. StartingError: it gets one soon.
        """
        if integration.instances is None or not integration.takes_calls:
            self.raise_unavailable(integration)
        instances = cast("Instances", integration.instances)
        found = instances.pick(client, quietly=quietly)
        if found is None:
            raise StartingError([integration.settings.name])
        if isinstance(found, str):
            integration.totals["refused"] += 1
            raise RequestError(jsonrpc.UNAVAILABLE, found, integration.availability, unserved=True)
        return found

    def route_of(self, method: str, params: Object, client: Client, *, modern: bool) -> str:
        """The integration that serves a prompt, a resource or a completion; renames within."""
        catalogue = self.catalogue(client)
        if method == "prompts/get":
            entry = self.entry(method, params, catalogue.prompts, client.view)
            params["name"] = entry.raw_name
            return entry.integration
        if method == "resources/read":
            return self.resource_owner(jsonrpc.text(params, "uri"), client, modern=modern)
        ref = jsonrpc.nested(params, "ref")
        if jsonrpc.text(ref, "type") == "ref/prompt":
            entry = self.entry(method, ref, catalogue.prompts, client.view)
            params["ref"] = jsonrpc.raw_of({**ref, "name": entry.raw_name})
            return entry.integration
        return self.resource_owner(jsonrpc.text(ref, "uri"), client, modern=modern)

    def find_resource(self, uri: str, client: Client) -> str | tuple[str, ...]:
        """The integration that serves a resource to a client, or all that claim it before it.

        Of those that claim it in what the client sees, the one that listed it to this client.
        """
        owner = self.catalogue(client).resource_owner(uri)
        if isinstance(owner, str) or not owner or not client.listed:
            return owner
        return self._seen_listings(client).lister(uri, owner, client.listed) or owner

    def resource_owner(self, uri: str | None, client: Client, *, modern: bool = False) -> str:
        """The integration that serves a resource.

        Raises:
            RequestError: none does, or several claim it. StartingError: one may do so soon.
        """
        if uri is None:
            raise RequestError(jsonrpc.INVALID_PARAMS, "expected the uri of a resource")
        owner = self.find_resource(uri, client)
        if isinstance(owner, str):
            return owner
        unknown = [n for n, i in self.seen(client.view).items() if i.is_unknown]
        if unknown and not owner:
            raise StartingError(unknown)
        if owner:
            text = (
                f"{uri[:200]}: claimed by {', '.join(owner)}, so served by none to a client that "
                "sees more than one of them. Give it a view with one of them: `integrations` of "
                "[clients.NAME] in vsm.toml."
            )
        else:
            text = f"{uri[:200]}: no integration offers this resource"
        code = jsonrpc.INVALID_PARAMS if modern else jsonrpc.RESOURCE_NOT_FOUND
        raise RequestError(code, text, {"uri": uri[:200]}, unserved=True)


def _raise_suspended(kind: str, name: str, seen: dict[str, Integration]) -> None:
    """Say it where a tool or prompt is there, but is not what was approved."""
    for owner, integration in seen.items():
        for key, reason in integration.surface.suspended.items():
            what, _, raw = key.partition(" ")
            if what == kind and public_name(integration.settings.prefix, raw, owner) == name:
                raise _suspended(name, reason, owner)


def check_offered(integration: Integration, call: Call) -> None:
    """What a call asks for may have been changed by its server while the call was held.

    Raises:
        RequestError: it is not what was approved any more.
    """
    lists = {"tools/call": "tools/list", "prompts/get": "prompts/list"}
    if call.method in lists and integration.surface.suspended:
        name = jsonrpc.text(call.params, "name") or ""
        key = suspension_key(lists[call.method], name)
        reason = integration.surface.suspended.get(key)
        if reason is not None:
            raise _suspended(name, reason, integration.settings.name)


def check_era(call: Call, upstream: Upstream) -> None:
    """The server that a held call was made for may have been replaced since.

    Raises:
        RequestError: by one of another era.
    """
    modern = META_VERSION in jsonrpc.nested(call.params, "_meta")
    if modern is not (upstream.era is Era.MODERN):
        text = f"{call.integration} is of another era since it was replaced. Call it again."
        raise RequestError(jsonrpc.UNAVAILABLE, text)


def _suspended(name: str, reason: str, owner: str) -> RequestError:
    text = (
        f"{name[:200]}: {reason}. See `vsm trust diff {owner}`, then `vsm trust approve {owner}`."
    )
    return RequestError(jsonrpc.UNAVAILABLE, text, unserved=True)
