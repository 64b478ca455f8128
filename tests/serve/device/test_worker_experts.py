"""A worker whose model has two experts that take turns on the device: it makes one video at a time."""

from pathlib import Path

from adacache_engines.contract.fake import FakeBackend
from adacache_runtime.pipeline import Pipeline
from adacache_serve.device.messages import Called, Completed, Failed
from tests.helpers.model.experts import LOW, Watched, functions_of_experts, two_experts
from tests.helpers.model.fake_model import BLOCKS
from tests.helpers.serving.fake_server import encode, write_model
from tests.helpers.serving.worker_rig import MODEL, Rig

ORDERS = {"first": {"steps": 4, "policy": "interval-2"}, "second": {"steps": 6, "seed": 3, "priority": 2}}


def test_one_video_at_a_time_as_if_alone(tmp_path: Path) -> None:
    """Jobs wait for each other, although there is memory for both, and each switches once to either expert."""
    bundle = write_model(tmp_path / MODEL, **two_experts())
    functions = {**functions_of_experts(), "encoder": encode}
    both = {MODEL: Pipeline(bundle, FakeBackend(functions))}
    alone = Rig(both, tmp_path / "alone")
    for name, order in ORDERS.items():
        alone.begin(name, **order)
        alone.finish()
    backend = Watched(functions)
    rig = Rig({MODEL: Pipeline(bundle, backend, expert_offload=True)}, tmp_path / "turns", expert_offload=True)
    for name, order in ORDERS.items():
        rig.begin(name, **order)
    assert rig.finish() == alone.finish()
    told = [said.job for said in rig.of(Called)]
    assert told == sorted(told), "the jobs took turns"
    switches = [(said.job, said.call["call"]) for said in rig.of(Called) if "switch_ms" in said.call]
    assert switches == [("first", 3), ("second", 1), ("second", 4)]


def test_an_expert_that_cannot_be_loaded_fails_its_job_alone(tmp_path: Path) -> None:
    bundle = write_model(tmp_path / MODEL, **two_experts())
    backend = Watched({**functions_of_experts(), "encoder": encode})
    rig = Rig({MODEL: Pipeline(bundle, backend, expert_offload=True)}, tmp_path / "turns", expert_offload=True)
    backend.broken = {LOW + BLOCKS[0]}
    rig.begin("broken", **ORDERS["first"])
    rig.finish()
    (failed,) = rig.of(Failed)
    assert failed.code == "EngineError"
    assert failed.message.startswith(f"the engines of expert low cannot be loaded: {LOW}{BLOCKS[0]} is broken")
    backend.broken = set()
    rig.begin("whole", **ORDERS["first"])
    rig.finish()
    assert [said.job for said in rig.of(Completed)] == ["whole"]
