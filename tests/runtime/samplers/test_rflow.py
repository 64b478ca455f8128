import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adacache_engines.bundle.manifest import DTYPES, Precision
from adacache_engines.bundle.tensors import NUMPY_DTYPES, DType
from adacache_engines.errors import OutOfRangeError
from adacache_export.families.open_sora.family import SHIFT, OpenSoraConfig, describe
from adacache_runtime.samplers.flow import shift_ratio
from adacache_runtime.samplers.rflow import rflow, rflow_timesteps
from adacache_runtime.samplers.update import check_guidance, check_steps
from tests.helpers.originals.reference import OPEN_SORA, arrays

REAL = arrays(OPEN_SORA / "timesteps_real.npz")
SIZES = {"144p": (144, 256), "240p": (240, 426), "360p": (360, 640), "480p": (480, 854), "720p": (720, 1280)}
FRAMES = {"img": 1, "2s": 51, "4s": 102}


def conditions_of(precision: Precision) -> DType:
    """Return the type to which a model with such weights rounds its conditions."""
    return describe(OpenSoraConfig(), None, DTYPES[precision]).sampler.condition_dtype


def ratio(height: int, width: int, frames: int, precision: Precision = "fp32") -> np.generic:
    return shift_ratio(SHIFT, height, width, frames, NUMPY_DTYPES[conditions_of(precision)])


@pytest.mark.parametrize("name", sorted(REAL))
def test_timesteps_are_the_originals_to_the_bit(name: str) -> None:
    setting, precision = name.split(".")
    resolution, duration = setting.split("_")
    timesteps = rflow_timesteps(30, 2, ratio(*SIZES[resolution], FRAMES[duration], precision))
    assert timesteps.dtype == np.float32
    for sample in range(2):
        np.testing.assert_array_equal(timesteps[:, sample], REAL[name])


def test_timesteps_of_the_sampling_run() -> None:
    expected = arrays(OPEN_SORA / "sampling_A.npz")["timesteps"]
    np.testing.assert_array_equal(rflow_timesteps(30, 2, ratio(48, 80, 17)), expected)


def test_without_the_transform_timesteps_are_even() -> None:
    np.testing.assert_allclose(rflow_timesteps(4, 1)[:, 0], [1000, 750, 500, 250])


@pytest.mark.parametrize("frames", range(2, 17))
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_frames_without_timesteps_are_refused(frames: int, precision: str) -> None:
    with pytest.raises(OutOfRangeError, match=f"{frames} frames .*1 frame .*17 frames"):
        ratio(480, 854, frames, precision)


@pytest.mark.parametrize("frames", [1, 17, 33, 51, 408])
def test_other_frames_have_timesteps(frames: int) -> None:
    assert np.isfinite(rflow_timesteps(30, 1, ratio(480, 854, frames))).all()


def test_float16_weights_do_not_round_sizes_to_float16() -> None:
    """480 x 854 is beyond what float16 holds."""
    assert ratio(480, 854, 51, "fp16") == ratio(480, 854, 51, "fp32")


RATIOS = st.one_of(
    st.none(), st.builds(ratio, st.integers(64, 2048), st.integers(64, 2048), st.sampled_from((1, 17, 51, 408)))
)


@given(steps=st.integers(1, 1000), shift=RATIOS)
def test_timesteps_fall_from_noise_to_data(steps: int, shift: np.generic | None) -> None:
    timesteps = rflow_timesteps(steps, 1, shift)[:, 0]
    assert timesteps.shape == (steps,)
    assert timesteps[0] == pytest.approx(1000, rel=1e-6)
    assert (np.diff(timesteps) < 0).all()
    assert timesteps[-1] > 0


@given(steps=st.integers(1, 200), shift=RATIOS)
def test_a_constant_velocity_is_followed_exactly(steps: int, shift: np.generic | None) -> None:
    """Straight paths need one step, so any number of steps goes the same way, all the way to t = 0."""
    z = 0.5
    for update in rflow(rflow_timesteps(steps, 1, shift)):
        assert update.slot == 0
        z = float(update.scale[0]) * z + float(update.weights[update.slot, 0]) * 3.0
    assert z == pytest.approx(3.5, rel=1e-5)


def test_a_samples_steps_are_its_own() -> None:
    timesteps = np.stack([rflow_timesteps(5, 1)[:, 0], rflow_timesteps(5, 1, ratio(720, 1280, 51))[:, 0]], axis=1)
    updates = list(rflow(timesteps))
    assert [update.timestep.tolist() for update in updates] == timesteps.tolist()
    np.testing.assert_allclose(sum(update.weights for update in updates), [[1, 1]], rtol=1e-6)
    assert not np.allclose(updates[0].weights[0, 0], updates[0].weights[0, 1])


def solve(steps: int, shift: np.generic | None, velocity: Callable[[float, float], float], z: float) -> float:
    for update in rflow(rflow_timesteps(steps, 1, shift)):
        v = velocity(float(update.timestep[0]) / 1000, z)
        z = float(update.scale[0]) * z + float(update.weights[0, 0]) * v
    return z


@pytest.mark.parametrize("shift", [None, ratio(480, 854, 51)])
def test_the_order_of_convergence_is_one(shift: np.generic | None) -> None:
    """dz/dt = cos(3 t) z from t = 1, with v = -dz/dt: z(0) = exp(-sin(3) / 3) z(1)."""
    exact = math.exp(-math.sin(3) / 3)
    steps = [50, 100, 200, 400]
    errors = [abs(solve(n, shift, lambda t, z: -math.cos(3 * t) * z, 1.0) - exact) for n in steps]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert errors[-1] < 0.01
    assert all(0.9 < order < 1.1 for order in orders), orders


@pytest.mark.parametrize("steps", [1, 30, 1000])
def test_steps_in_range(steps: int) -> None:
    check_steps(steps)


@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_steps_out_of_range(steps: int) -> None:
    with pytest.raises(OutOfRangeError, match=f"{steps} steps.* 1 to 1000"):
        check_steps(steps)


@pytest.mark.parametrize("guidance", [-0.1, 100.1, math.inf, -math.inf, math.nan])
def test_guidance_out_of_range(guidance: float) -> None:
    with pytest.raises(OutOfRangeError, match="guidance"):
        check_guidance(guidance)


@pytest.mark.parametrize("guidance", [0, 1, 7.5, 100])
def test_guidance_in_range(guidance: float) -> None:
    check_guidance(guidance)
