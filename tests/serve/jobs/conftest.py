"""Services on fake workers, for the tests of jobs."""

from tests.helpers.serving.bench_fixtures import bench, benches, model

__all__ = ["bench", "benches", "model"]
