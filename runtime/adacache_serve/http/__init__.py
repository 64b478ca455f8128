"""The HTTP API and the page: routes, request bodies, answers, errors, limits, and the server process."""
