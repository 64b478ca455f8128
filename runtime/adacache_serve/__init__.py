"""Serves bundles over HTTP on one machine: durable jobs, a worker process for each device, several videos in turn.

Layers, imports point down only:

    cli, start
    app, videos, operations, page        HTTP
    service                              what happens to a job
    supervisor, store, results, uploads  processes, the database, files
    triton                               instead of all above, in Triton's Python backend
    worker                               a process of its own: film, fair
    schema, orders, messages, settings   values
"""
