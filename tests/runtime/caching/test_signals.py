"""The signals' references in numpy: what they mean, and along which axes the numbers of a tensor's parts add up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adacache_engines.bundle.signals import Space
from adacache_engines.errors import InputError
from adacache_runtime.caching.signals.registry import SIGNALS, signal_from
from adacache_runtime.caching.signals.signal import FRAME_AXIS, RANK, Signal, at_stride
from tests.helpers.policies.cosine import COSINE

SHAPES: Mapping[Space, tuple[int, ...]] = {
    "hidden": (3, 4, 6, 5),
    "latents": (3, 5, 4, 2, 6),
    "time": (3, 5),
    "time_modulation": (3, 30),
}
ALL = {**SIGNALS, "cosine": COSINE}
PAIRS = [(name, space) for name, signal in ALL.items() for space in signal.spaces]
# the axis of a tensor that an independent axis of a signal is, by space
AXES: Mapping[Space, Mapping[str, int]] = {
    "hidden": {"patch_frames": 1, "tokens": 2},
    "latents": {"patch_frames": 2},
    "time": {},
    "time_modulation": {},
}


def tensors(signal: Signal, space: Space) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(0)
    pairs = {"earlier": np.arange(3), "later": np.arange(3) + 1}
    return {name: pairs.get(name, random.standard_normal(SHAPES[space])) for name in signal.inputs}


def test_the_shapes_of_the_spaces() -> None:
    assert {space: len(shape) for space, shape in SHAPES.items()} == RANK
    assert {space: SHAPES[space][axis] for space, axis in FRAME_AXIS.items()} == {"hidden": 4, "latents": 4}


@pytest.mark.parametrize("space", SHAPES)
def test_change_and_magnitude(space: Space) -> None:
    given = tensors(SIGNALS["change"], space)
    numbers = SIGNALS["change"].in_numpy(space, given)
    for sample in range(3):
        cached, new = (given[name][sample].ravel() for name in ("cached", "new"))
        assert numbers["change"][sample] == pytest.approx(sum(abs(a - b) for a, b in zip(cached, new, strict=True)))
        assert numbers["magnitude"][sample] == pytest.approx(sum(map(abs, cached)))


def test_motion_is_over_pairs_of_frames() -> None:
    given = tensors(SIGNALS["motion"], "hidden")
    numbers = SIGNALS["motion"].in_numpy("hidden", given)
    new = given["new"]
    for sample in range(3):
        apart = sum(np.abs(new[sample, frame + 1] - new[sample, frame]).sum() for frame in range(3))
        size = sum(np.abs(new[sample, frame + 1]).sum() + np.abs(new[sample, frame]).sum() for frame in range(3))
        assert numbers["motion"][sample] == pytest.approx(apart)
        assert numbers["motion_magnitude"][sample] == pytest.approx(size)


@pytest.mark.parametrize(("name", "space"), PAIRS)
def test_parts_add_up_along_independent_axes(name: str, space: Space) -> None:
    """And nowhere else: motion compares a frame with a later one, which another part has."""
    signal = ALL[name]
    given = tensors(signal, space)
    whole = signal.in_numpy(space, given)
    for axis, place in AXES[space].items():
        halves = []
        for half in (0, 1):
            cut = {key: np.array_split(value, 2, place)[half] for key, value in given.items() if value.ndim > 1}
            inside = {key: np.arange(1) + (key == "later") for key in given if key not in cut}
            pairs = {key: given[key] for key in inside} if axis != "patch_frames" else inside
            halves.append(signal.in_numpy(space, {**cut, **pairs}))
        for number, values in whole.items():
            added = halves[0][number] + halves[1][number]
            assert np.allclose(added, values) == (axis in signal.independent_axes), (axis, number)


@pytest.mark.parametrize(("name", "space"), PAIRS)
def test_numbers_are_for_each_sample(name: str, space: Space) -> None:
    signal = ALL[name]
    numbers = signal.in_numpy(space, tensors(signal, space))
    assert tuple(numbers) == signal.numbers
    assert {values.shape for values in numbers.values()} == {(3,)}


def test_no_two_signals_share_a_number() -> None:
    numbers = [number for signal in SIGNALS.values() for number in signal.numbers]
    assert len(numbers) == len({*numbers})
    assert list(SIGNALS) == [signal.name for signal in SIGNALS.values()]


def test_keys_of_measurements() -> None:
    assert SIGNALS["change"].keys((1, 2)) == ("change", "magnitude")
    assert SIGNALS["motion"].keys((2,)) == (at_stride("motion", 2), at_stride("motion_magnitude", 2))


def test_a_signal_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert signal_from("tests.helpers.policies.cosine:COSINE") is COSINE
    (tmp_path / "no_signals_here.py").write_text("NUMBER = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"'no_signals_here:NUMBER' is 7, and no signal; name an object of .*Signal"):
        signal_from("no_signals_here:NUMBER")
    with pytest.raises(InputError, match="signal 'no_signals_here:OTHER' cannot be imported"):
        signal_from("no_signals_here:OTHER")
