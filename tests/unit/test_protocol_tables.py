"""The SDK's own tables are the oracle for ours."""

from mcp_types import methods, version

from vsm.protocol import envelope, tables
from vsm.protocol.tables import Era

VERSIONS = {Era.LEGACY: "2025-11-25", Era.MODERN: "2026-07-28"}


def named(table: object, revision: str) -> set[str]:
    return {method for method, at in table if at == revision}  # type: ignore[attr-defined]


def test_versions_are_the_sdks() -> None:
    assert tables.LEGACY_VERSIONS == version.HANDSHAKE_PROTOCOL_VERSIONS
    assert tables.MODERN_VERSIONS == version.MODERN_PROTOCOL_VERSIONS


def test_methods_of_each_era_and_direction_are_the_sdks() -> None:
    for era, revision in VERSIONS.items():
        assert tables.CLIENT_REQUESTS[era] == named(methods.CLIENT_REQUESTS, revision)
        assert tables.SERVER_REQUESTS[era] == named(methods.SERVER_REQUESTS, revision)
        ours = tables.CLIENT_NOTIFICATIONS[era]
        assert ours == named(methods.CLIENT_NOTIFICATIONS, revision)
        assert tables.SERVER_NOTIFICATIONS[era] == named(methods.SERVER_NOTIFICATIONS, revision)


def test_cacheable_and_asking_methods_are_the_sdks() -> None:
    assert set(methods.CACHEABLE_METHODS) == tables.CACHEABLE
    assert set(methods.INPUT_REQUIRED_METHODS) == tables.ASKING


def test_headers_are_wrapped_as_the_sdk_wraps_them() -> None:
    from mcp.shared.inbound import encode_header_value

    for value in ("plain", "", " edge ", "é", "=?base64?eA==?=", "a\nb"):
        assert envelope.unwrap_header(encode_header_value(value)) == value
    assert envelope.unwrap_header("=?base64?!?=") is None
