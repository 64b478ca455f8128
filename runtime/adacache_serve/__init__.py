"""Serves bundles over HTTP on one machine: durable jobs, a worker process for each device, several videos in turn.

Layers, imports point down only:

    cli, start; triton             where it begins: a command, or Triton's Python backend
    http/                          routes, what comes in and goes out, the drain
    jobs/                          what happens to a job, where it is kept, what operators see
    device/                        a worker process, which makes videos in turn, and who watches over it
    lifetime, spool, uploads       what the server and its workers share on the disk
    orders, keys, logs             an order as a request, who may come, what is told
    messages, schema, settings     values
"""
