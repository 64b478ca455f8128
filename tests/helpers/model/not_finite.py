"""The fake model with NaN or infinity among the outputs of one stage in one call."""

from collections.abc import Mapping

from adacache_engines.contract.device import Array
from adacache_engines.contract.fake import Function
from adacache_runtime.samplers.rflow import rflow_timesteps
from tests.helpers.model.fake_model import functions


def broken_at(name: str, call: int, steps: int, value: float) -> dict[str, Function]:
    """Return the fake model's functions, of which ``name`` returns ``value`` in one call, which its timestep tells."""
    every = functions()
    now: list[float] = []

    def embed(given: Mapping[str, Array]) -> Mapping[str, Array]:
        now[:] = [float(given["timestep"][0])]
        return every["embed"](given)

    def broken(given: Mapping[str, Array]) -> Mapping[str, Array]:
        outputs = (embed if name == "embed" else every[name])(given)
        if now == [float(rflow_timesteps(steps, 1)[call - 1, 0])]:
            first = next(iter(outputs))
            spoilt = outputs[first].copy()
            spoilt.reshape(-1)[-1] = value
            return {**outputs, first: spoilt}
        return outputs

    return {**every, "embed": embed, name: broken}
