"""A local Ray with tools/examples/ray_serve.py on the fake model, until standard input ends.

It is a process of its own, since Ray emits many warnings and starts many processes.

python ray_server.py BUNDLE PORT TIMEOUT_SECONDS
"""

import sys
import tempfile
from pathlib import Path

import ray
from ray import serve

from adacache_engines.bundle.files import open_bundle
from adacache_engines.contract.fake import FakeBackend
from adacache_runtime.pipeline import Pipeline
from tools.examples.ray_serve import application


def open_fake(folder: str) -> Pipeline:
    from tests.helpers.serving.fake_server import functions

    return Pipeline(open_bundle(Path(folder)), FakeBackend(functions()))


def main(bundle: str, port: str, timeout_seconds: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        ray.init(num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, _temp_dir=folder)
        options = {"host": "127.0.0.1", "port": int(port), "request_timeout_s": float(timeout_seconds)}
        serve.start(http_options=options)
        serve.run(application(bundle, replicas=2, open_pipeline=open_fake))
        print("ready", flush=True)  # noqa: T201
        sys.stdin.read()
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
