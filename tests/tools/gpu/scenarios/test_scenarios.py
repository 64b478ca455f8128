"""The scenarios for a GPU's runtime on the faked one, which checks what a GPU would not tell."""

import gc

import pytest

from tests.helpers.gpu.fake_cuda import FakeCuda
from tools.gpu.scenarios.registry import SCENARIOS


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_on_the_faked_runtime(name: str) -> None:
    api = FakeCuda(capacity=1 << 20)
    SCENARIOS[name](api)
    gc.collect()
    assert api.faults == []
    assert api.blocks == {}, "memory is still taken when the device is gone"
    assert api.graphs == []
