"""Serves bundles over HTTP on one machine: durable jobs, a worker process for each device, several videos in turn.

Layers, imports point down only:

    cli, start; triton                   where it begins: a command, or Triton's Python backend
    app, document, limits                HTTP: all of it
    videos, operations, page             routes
    bodies, content, events, keys,       what comes in and goes out
    problems, views
    server                               the drain
    service, housekeeping                what happens to a job
    dispatching, publishing              who makes it, who keeps it
    supervisor, store, results, uploads  processes, the database, files
    metrics, tracing                     what operators see
    worker, warm_up                      a process of its own
    film, fair, in_flight                a video in steps; several at once
    ownership, lifetime, spool, files    what the server and its workers hold on the disk
    schema, orders, messages, settings,  values
    triton_config
"""
