"""The OpenAPI document: what the routes say, and what they do not say themselves."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from adacache_serve.http.bodies import FILES
from adacache_serve.http.schema import Problem
from adacache_serve.orders.schema import CreateVideo

REFS = "#/components/schemas/{model}"
ABOUT = """\
Make videos as jobs: create a job, follow its events, and download its content. \
Every error is problem+json (RFC 9457) and names the field of the request that caused it, if there is one."""


def document(app: FastAPI, keys: bool) -> dict[str, Any]:
    """Return the OpenAPI document.

    Args:
        app: the application, with all its routes.
        keys: whether clients need an API key.
    """
    if app.openapi_schema is None:
        app.openapi_schema = _document(app, keys)
    return app.openapi_schema


def _document(app: FastAPI, keys: bool) -> dict[str, Any]:
    whole = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
    components = whole["components"]
    for model in (CreateVideo, Problem):
        components["schemas"][model.__name__] = model.model_json_schema(ref_template=REFS)
    components["schemas"]["CreateVideoForm"] = _form(components["schemas"]["CreateVideo"])
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in whole["paths"].items():
            if path.startswith("/v1/"):
                for operation in operations.values():
                    operation["security"] = [{"key": []}]
    return whole


def _form(order: dict[str, Any]) -> dict[str, Any]:
    """Describe an order as a form: no field is null, and the image is a file under either name, or text."""
    fields = {name: _without_null(field) for name, field in order["properties"].items()}
    file = {"type": "string", "format": "binary", "description": order["properties"]["image"]["description"]}
    return {**order, "title": "CreateVideoForm", "properties": {**fields, **dict.fromkeys(FILES, file)}}


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    about = {name: value for name, value in field.items() if name not in ("anyOf", "default")}
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    return {**about, **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {})}
