"""MCP's two eras as literal tables: versions, methods by direction, reserved names.

Pure data. The specification is its source; a test compares it with the SDK's own tables.
"""

from enum import Enum
from typing import Final


class Era(Enum):
    """How a peer speaks: with a handshake and a session, or with an envelope per request."""

    LEGACY = "legacy"
    MODERN = "modern"


MODERN_VERSION: Final = "2026-07-28"
MODERN_VERSIONS: Final = (MODERN_VERSION,)
LEGACY_VERSIONS: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
LEGACY_VERSION: Final = LEGACY_VERSIONS[-1]

META: Final = "io.modelcontextprotocol/"
META_VERSION: Final = META + "protocolVersion"
META_CLIENT: Final = META + "clientInfo"
META_CAPABILITIES: Final = META + "clientCapabilities"
META_LOG_LEVEL: Final = META + "logLevel"
META_SERVER: Final = META + "serverInfo"
META_SUBSCRIPTION: Final = META + "subscriptionId"
RELATED_TASK: Final = META + "related-task"
TASK_EXTENSION: Final = META + "tasks"
ENVELOPE_KEYS: Final = (META_VERSION, META_CLIENT, META_CAPABILITIES, META_LOG_LEVEL)

# Client → server requests that the gateway routes to one integration, and the member of
# params that says which one.
ROUTED: Final = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "completion/complete": "ref",
}
# Requests about one task; they go to whoever made it. `tasks/list` is not among them: a server that
# several clients share would list everybody's.
TASK_METHODS: Final = {
    Era.LEGACY: frozenset({"tasks/get", "tasks/result", "tasks/cancel"}),
    Era.MODERN: frozenset({"tasks/get", "tasks/update", "tasks/cancel"}),
}
TASK_REQUESTS: Final = TASK_METHODS[Era.LEGACY] | TASK_METHODS[Era.MODERN]
TASK_NOTIFICATIONS: Final = frozenset({"notifications/tasks/status", "notifications/tasks"})
# Client → server requests that the gateway answers from its merged catalogue, and the
# member of the result that holds the list.
LISTS: Final = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}
CLIENT_REQUESTS: Final = {
    Era.LEGACY: frozenset(
        {
            *ROUTED,
            *LISTS,
            "initialize",
            "ping",
            "logging/setLevel",
            "resources/subscribe",
            "resources/unsubscribe",
        }
    ),
    Era.MODERN: frozenset({*ROUTED, *LISTS, "server/discover", "subscriptions/listen"}),
}
ROOTS_CHANGED: Final = "notifications/roots/list_changed"
CLIENT_NOTIFICATIONS: Final = {
    Era.LEGACY: frozenset(
        {
            "notifications/cancelled",
            "notifications/initialized",
            "notifications/progress",
            ROOTS_CHANGED,
        }
    ),
    Era.MODERN: frozenset({"notifications/cancelled"}),
}
SERVER_REQUESTS: Final = {
    Era.LEGACY: frozenset({"ping", "roots/list", "sampling/createMessage", "elicitation/create"}),
    Era.MODERN: frozenset(),
}
SERVER_NOTIFICATIONS: Final = {
    Era.LEGACY: frozenset(
        {
            "notifications/cancelled",
            "notifications/elicitation/complete",
            "notifications/message",
            "notifications/progress",
            "notifications/prompts/list_changed",
            "notifications/resources/list_changed",
            "notifications/resources/updated",
            "notifications/tools/list_changed",
        }
    ),
    Era.MODERN: frozenset(
        {
            "notifications/cancelled",
            "notifications/message",
            "notifications/progress",
            "notifications/prompts/list_changed",
            "notifications/resources/list_changed",
            "notifications/resources/updated",
            "notifications/subscriptions/acknowledged",
            "notifications/tools/list_changed",
        }
    ),
}
# Modern results that say how long they may be kept.
CACHEABLE: Final = frozenset({*LISTS, "resources/read", "server/discover"})
# Modern requests that may be answered by a question (`input_required`).
ASKING: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
# A server's list_changed notification, and the lists to fetch again.
CHANGED: Final = {
    "notifications/tools/list_changed": ("tools/list",),
    "notifications/prompts/list_changed": ("prompts/list",),
    "notifications/resources/list_changed": ("resources/list", "resources/templates/list"),
}
CHANGE_OF_LIST: Final = {
    "tools/list": "notifications/tools/list_changed",
    "prompts/list": "notifications/prompts/list_changed",
    "resources/list": "notifications/resources/list_changed",
    "resources/templates/list": "notifications/resources/list_changed",
}
# A list_changed notification, and the member of a subscription's filter that asks for it.
LISTEN_FILTERS: Final = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
}
# What a client must have declared to be asked by a server.
ASKED_CAPABILITY: Final = {
    "roots/list": "roots",
    "sampling/createMessage": "sampling",
    "elicitation/create": "elicitation",
}
LOG_LEVELS: Final = (
    "debug",
    "info",
    "notice",
    "warning",
    "error",
    "critical",
    "alert",
    "emergency",
)
