"""Jobs over HTTP: create one, and wait for its end."""

from typing import Any

import httpx

from tests.helpers.waiting import until

VIDEOS = "/v1/videos"
ENDED = ("completed", "failed", "cancelled")


def create(client: httpx.Client, **order: Any) -> str:
    """Create a job and return its id."""
    answer = client.post(VIDEOS, json={"prompt": "boat", **order})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ended(client: httpx.Client, name: str) -> dict[str, Any]:
    """Return a job when it has ended."""

    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"{VIDEOS}/{name}").json()
        return job if job["status"] in ENDED else None

    found = until(look)
    assert found is not None
    return found
