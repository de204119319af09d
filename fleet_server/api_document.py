"""The API's own description: what FastAPI finds, and what each operation demands of its caller.

Takes the demands from the table of permissions, so that the document cannot promise more.
"""

from typing import Any

from fastapi import FastAPI

from fleet_server.access.permissions import ENDPOINTS, Door

PERMISSION = "x-permission"
"""Under this name an operation says which permission it needs."""
CERTIFICATE = "device"
"""The security scheme of devices."""


def install(app: FastAPI) -> None:
    """Let the application describe itself so."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _extended(described())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _extended(document: dict[str, Any]) -> dict[str, Any]:
    schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
    # FastAPI has no word for it, OpenAPI 3.1 has.
    schemes[CERTIFICATE] = {
        "type": "mutualTLS",
        "description": "A device's certificate, at the address for devices.",
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            rule = ENDPOINTS.get((method.upper(), path))
            if rule is None:
                continue
            if rule.permission is not None:
                operation[PERMISSION] = rule.permission.value
                needs = f"Needs the permission `{rule.permission.value}`"
                also = ", or a device" if rule.door is Door.DEVICE_OR_OPERATOR else ""
                operation["description"] = f"{operation['description']}\n\n{needs}{also}."
            if rule.door in (Door.DEVICE, Door.DEVICE_OR_OPERATOR):
                operation.setdefault("security", []).append({CERTIFICATE: []})
            if rule.door is Door.ANYONE:
                for status in ("401", "403", "429"):
                    operation["responses"].pop(status, None)
    return document
