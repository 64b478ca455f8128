"""Serves bundles over HTTP on one machine: durable jobs, a worker process for each device, several videos in turn.

Layers, imports point down only:

    cli, start; triton                   where it begins: a command, or Triton's Python backend
    app, videos, operations, page        HTTP
    service                              what happens to a job
    supervisor, store, results, uploads  processes, the database, files
    worker                               a process of its own: film, fair
    schema, orders, messages, settings,  values
    triton_config
"""
