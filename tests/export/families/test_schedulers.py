"""``scheduler_config.json``: what is honoured, what is refused, and that no setting of diffusers is forgotten."""

import inspect
from typing import Any

import diffusers
import pytest

from adacache_engines.bundle.manifest import SamplerDefaults
from adacache_engines.errors import CheckpointError
from adacache_export.families.open_sora.family import OpenSoraConfig
from adacache_export.families.registry import FAMILIES
from adacache_export.families.schedulers import SCHEDULERS, sampler_of
from adacache_runtime.samplers.registry import updates
from tests.helpers.model import fake_model
from tests.helpers.originals.flow_schedulers import called, differences

UNIPC = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 8.0}
# as published with a flow model
PUBLISHED = {
    **UNIPC,
    "_diffusers_version": "0.33.0.dev0",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "disable_corrector": [],
    "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_p": None,
    "solver_type": "bh2",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


def test_a_published_file_is_honoured() -> None:
    made = sampler_of(PUBLISHED, UNIPC, 5.0)
    assert (made.name, made.steps, made.guidance, made.timestep_shift) == ("unipc", 50, 5.0, 3.0)
    assert (made.velocity, made.whole_timesteps) == ("to-noise", True)


def test_a_file_may_name_the_other_sampler_of_a_flow() -> None:
    made = sampler_of(EULER, PUBLISHED, 4.0, steps=40)
    assert (made.name, made.steps, made.timestep_shift, made.velocity) == ("euler", 40, 8.0, "to-noise")


def test_without_a_file_the_published_one_counts() -> None:
    assert sampler_of(None, PUBLISHED, 5.0) == sampler_of(PUBLISHED, UNIPC, 5.0)


def test_a_setting_that_is_left_out_is_diffusers_default() -> None:
    assert sampler_of(UNIPC, PUBLISHED, 5.0).timestep_shift == 1.0
    with pytest.raises(CheckpointError, match=r"prediction_type 'epsilon' .*use_flow_sigmas False"):
        sampler_of({"_class_name": "UniPCMultistepScheduler"}, PUBLISHED, 5.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prediction_type", "epsilon"),
        ("prediction_type", "v_prediction"),
        ("solver_order", 3),
        ("solver_type", "bh1"),
        ("solver_p", {"_class_name": "DDIMScheduler"}),
        ("predict_x0", False),
        ("lower_order_final", False),
        ("disable_corrector", [0]),
        ("final_sigmas_type", "sigma_min"),
        ("use_karras_sigmas", True),
        ("use_dynamic_shifting", True),
        ("shift_terminal", 0.1),
        ("num_train_timesteps", 4000),
        ("flow_shift", 0),
        ("flow_shift", "3"),
        ("flow_shift", None),
        ("flow_shift", True),
        ("a_setting_of_tomorrow", "on"),
        ("a_setting_of_tomorrow", 0),
    ],
)
def test_other_settings_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        sampler_of({**PUBLISHED, key: value}, UNIPC, 5.0)
    assert f"{key} {value!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(CheckpointError, match=r"use_beta_sigmas True .*solver_order 1"):
        sampler_of({**PUBLISHED, "solver_order": 1, "use_beta_sigmas": True}, UNIPC, 5.0)


def test_a_setting_of_tomorrow_that_is_off_changes_nothing() -> None:
    assert sampler_of({**PUBLISHED, "more": False, "other": None}, UNIPC, 5.0).name == "unipc"


@pytest.mark.parametrize(
    ("name", "usual"),
    [
        ("DDIMScheduler", UNIPC),
        ("DPMSolverMultistepScheduler", UNIPC),
        ("UniPCMultistepScheduler", {"_class_name": "DDIMScheduler"}),
    ],
)
def test_schedulers_of_another_kind_are_refused(name: str, usual: Any) -> None:
    with pytest.raises(CheckpointError, match=f"asks for {name}, expected one of .*{usual['_class_name']}"):
        sampler_of({"_class_name": name}, usual, 5.0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_setting_of_diffusers_is_known(name: str) -> None:
    kind = SCHEDULERS[name]
    for setting, parameter in list(inspect.signature(getattr(diffusers, name).__init__).parameters.items())[1:]:
        assert setting in (*kind.supported, *kind.ignored, kind.shift), setting
        if setting in kind.supported and parameter.default != kind.supported[setting]:
            assert kind.unset[setting] == parameter.default


# Open-Sora's own file


OPEN_SORA = {"type": "rflow", "num_sampling_steps": 20, "cfg_scale": 4.0, "num_timesteps": 1000}


def open_sora_sampler(scheduler: dict[str, Any]) -> SamplerDefaults:
    return FAMILIES["open-sora-1.2"].describe(OpenSoraConfig(), scheduler).sampler


def test_open_soras_own_file_is_honoured() -> None:
    shifted, plain = (open_sora_sampler({**OPEN_SORA, "use_timestep_transform": shifts}) for shifts in (True, False))
    assert (shifted.name, shifted.steps, shifted.guidance) == ("rflow", 20, 4.0)
    assert shifted.timestep_shift is not None
    assert plain.timestep_shift is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("type", "iddpm"),
        ("num_timesteps", 500),
        ("use_discrete_timesteps", True),
        ("use_timestep_transform", "no"),
        ("_class_name", "UniPCMultistepScheduler"),
        ("flow_shift", 3.0),
        ("num_sampling_steps", 0),
    ],
)
def test_open_soras_file_with_other_settings_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=key if key != "num_sampling_steps" else "steps"):
        open_sora_sampler({**OPEN_SORA, key: value})


# every setting of a flow's schedulers, each with other values than in BASE
BASE = {
    "UniPCMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0},
    "FlowMatchEulerDiscreteScheduler": {"shift": 5.0},
}
OTHERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "UniPCMultistepScheduler": {
        "num_train_timesteps": (500,),
        "beta_start": (1e-3,),
        "beta_end": (0.1,),
        "beta_schedule": ("scaled_linear", "squaredcos_cap_v2"),
        "trained_betas": ([0.01] * 1000,),
        "solver_order": (1, 3),
        "prediction_type": ("epsilon", "sample", "v_prediction"),
        "thresholding": (True,),
        "dynamic_thresholding_ratio": (0.5,),
        "sample_max_value": (0.1,),
        "predict_x0": (False,),
        "solver_type": ("bh1", "midpoint"),
        "lower_order_final": (False,),
        "disable_corrector": ([0], [3]),
        "solver_p": ({"_class_name": "DDIMScheduler"},),
        "use_karras_sigmas": (True,),
        "use_exponential_sigmas": (True,),
        "use_beta_sigmas": (True,),
        "use_flow_sigmas": (False,),
        "flow_shift": (1.0, 12, None, 0.0),
        "timestep_spacing": ("leading", "trailing"),
        "steps_offset": (1,),
        "final_sigmas_type": ("sigma_min",),
        "rescale_betas_zero_snr": (True,),
        "use_dynamic_shifting": (True,),
        "time_shift_type": ("linear",),
        "sigma_min": (0.1,),
        "sigma_max": (0.9,),
        "shift_terminal": (0.1,),
    },
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": (500,),
        "shift": (1.0, 12, None, 0.0),
        "use_dynamic_shifting": (True,),
        "base_shift": (1.0,),
        "max_shift": (3.0,),
        "base_image_seq_len": (64,),
        "max_image_seq_len": (512,),
        "invert_sigmas": (True,),
        "shift_terminal": (0.1,),
        "use_karras_sigmas": (True,),
        "use_exponential_sigmas": (True,),
        "use_beta_sigmas": (True,),
        "time_shift_type": ("linear",),
        "stochastic_sampling": (True,),
    },
}
HONOURED = {"flow_shift", "shift"}


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [(name, key, value) for name, others in OTHERS.items() for key, values in others.items() for value in values],
)
def test_a_setting_is_refused_by_name_or_sampled_as_by_diffusers(name: str, setting: str, value: Any) -> None:
    given = {**BASE[name], setting: value}
    kind, steps = SCHEDULERS[name], 10
    try:
        made = sampler_of({"_class_name": name, **given}, UNIPC, 5.0)
    except CheckpointError as error:
        assert f"{setting} {value!r}" in str(error)
        assert setting in kind.supported or setting in HONOURED
        return
    assert setting in kind.ignored or setting in HONOURED
    scheduler = called(getattr(diffusers, name)(**given), steps)
    bundle = fake_model.manifest().model_copy(update={"sampler": made})
    calls = updates(bundle, steps, 1, 16, 16, 1)
    assert [float(update.timestep[0]) for update in calls] == scheduler.timesteps.tolist()
    assert max(differences(scheduler, calls)) <= 1e-5


@pytest.mark.parametrize("name", OTHERS)
def test_other_values_of_every_setting_are_tried(name: str) -> None:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert list(OTHERS[name]) == list(parameters)[1:]
    for setting, values in OTHERS[name].items():
        assert BASE[name].get(setting, parameters[setting].default) not in values
