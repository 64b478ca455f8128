"""The web application: routes, what comes in and goes out, and the drain."""
