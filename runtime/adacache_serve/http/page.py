"""The page at ``/``: a form, the schedule of calls as it grows, and videos side by side."""

from importlib import resources
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from adacache_serve.http.videos import Serving
from adacache_serve.jobs.results import Results

FOLDER = resources.files("adacache_serve.http") / "page_files"
PAGE = "page.html"
FILES = {
    "api.js": "text/javascript",
    "form.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "job.js": "text/javascript",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "player.js": "text/javascript",
    "plot.js": "text/javascript",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
def page(service: Serving) -> Response:
    """Return the page."""
    return _answer(PAGE, "text/html", content_security_policy(service.results))


@router.get("/page/{name}")
def part(name: str) -> Response:
    """Return one of the files that the page needs."""
    if name not in FILES:
        raise HTTPException(404, f"the page has no file {name!r}")
    return _answer(name, FILES[name], "default-src 'none'")


def _answer(name: str, media_type: str, policy: str) -> Response:
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(FOLDER.joinpath(name).read_bytes(), media_type=media_type, headers=headers)


def content_security_policy(results: Results) -> str:
    """Return the policy of the page: it may connect to this server and to the place of the results only."""
    link = results.link("video")
    elsewhere = " {0.scheme}://{0.netloc}".format(urlsplit(link)) if link else ""
    rules = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": f"'self'{elsewhere}",
        "img-src": f"'self' blob:{elsewhere}",
        "media-src": f"'self' blob:{elsewhere}",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {allowed}" for name, allowed in rules.items())
