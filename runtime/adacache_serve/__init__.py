"""A server for bundles on one machine: durable jobs over HTTP, and workers that each make several videos in turn.

Imports point down only; README.md says what each folder is for:

    commands/; triton/        the entry points
    http/                     the HTTP API, the page, and the server process
    jobs/                     the life of jobs, and where they are kept
    device/                   workers, and their supervision
    orders/, disk/            clients' orders; files and locks that processes share
    settings, keys, logs
"""
