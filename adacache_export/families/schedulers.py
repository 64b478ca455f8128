"""The sampler of a bundle from diffusers' ``scheduler_config.json``, whose settings are honoured or refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adacache_engines.bundle.manifest import SamplerDefaults
from adacache_engines.errors import CheckpointError

CLASS = "_class_name"  # setting that names the scheduler's class


@dataclass(frozen=True)
class Scheduler:
    """A class of diffusers' schedulers.

    Attributes:
        sampler: sampler that computes the same, by its name in the runtime's registry.
        predicts: quantity that its models predict.
        steps: usual number of steps.
        supported: setting -> the one value of it that the sampler computes.
        unset: values that diffusers assumes for settings that a file leaves out, where they are not the supported ones.
        ignored: settings without any effect where the others have the supported values.
        shift: setting that holds the shift of timesteps; None = there is none.
    """

    sampler: str
    predicts: Literal["noise", "flow"]
    steps: int
    supported: Mapping[str, Any]
    unset: Mapping[str, Any]
    ignored: tuple[str, ...]
    shift: str | None = None


NOISE_SCHEDULE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
}
OTHER_SIGMAS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
}
CLIPPING = ("dynamic_thresholding_ratio", "sample_max_value")
# LatteT2V's scripts switch the clipping of latents off, whatever the file says, and its noise is never of learned
# variance in sampling
UNUSED_NOISE = (*CLIPPING, "clip_sample", "clip_sample_range", "variance_type")
SCHEDULERS: Mapping[str, Scheduler] = {
    "DDIMScheduler": Scheduler(
        "ddim", "noise", 50, {**NOISE_SCHEDULE, "set_alpha_to_one": True}, {}, (*UNUSED_NOISE, "skip_prk_steps")
    ),
    "PNDMScheduler": Scheduler(
        "pndm", "noise", 150, {**NOISE_SCHEDULE, "set_alpha_to_one": False, "skip_prk_steps": False}, {}, UNUSED_NOISE
    ),
    "UniPCMultistepScheduler": Scheduler(
        "unipc",
        "flow",
        50,
        {
            **OTHER_SIGMAS,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "solver_order": 2,
            "solver_type": "bh2",
            "solver_p": None,
            "predict_x0": True,
            "lower_order_final": True,
            "final_sigmas_type": "zero",
            "disable_corrector": [],
            "thresholding": False,
        },
        {"prediction_type": "epsilon", "use_flow_sigmas": False},
        (
            *CLIPPING,
            *("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
            *("timestep_spacing", "steps_offset", "time_shift_type", "sigma_min", "sigma_max"),
        ),
        "flow_shift",
    ),
    "FlowMatchEulerDiscreteScheduler": Scheduler(
        "euler",
        "flow",
        50,
        {**OTHER_SIGMAS, "invert_sigmas": False, "stochastic_sampling": False},
        {},
        ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"),
        "shift",
    ),
}


def sampler_of(
    scheduler: Mapping[str, Any] | None, usual: Mapping[str, Any], guidance: float, steps: int | None = None
) -> SamplerDefaults:
    """Return the sampler that a ``scheduler_config.json`` describes.

    A setting that the file leaves out has diffusers' default. A setting that is not known here is refused unless it is
    off, because a version of diffusers may compute something else by it.

    Args:
        scheduler: content of the file; None = there is none, and ``usual`` counts.
        usual: content of the file that was published with the model. It says, too, which class a file without
            ``_class_name`` is of, and whether the model predicts noise or a flow: a scheduler for the other is refused.
        guidance: published guidance scale.
        steps: published number of steps; None = that of the scheduler's class.

    Raises:
        CheckpointError: the scheduler is not supported, or a setting is not; lists all settings with their values.
    """
    given = {CLASS: usual[CLASS], **(usual if scheduler is None else scheduler)}
    name, predicts = given[CLASS], SCHEDULERS[usual[CLASS]].predicts
    known = [each for each, entry in SCHEDULERS.items() if entry.predicts == predicts]
    if name not in known:
        raise CheckpointError(
            f"scheduler_config.json asks for {name}, expected one of {', '.join(known)}: pass the published file of the"
            f" model, which is for {usual[CLASS]}"
        )
    kind = SCHEDULERS[name]
    settings = {key: value for key, value in {**kind.unset, **given}.items() if not key.startswith("_")}
    shift = settings.pop(kind.shift, 1.0) if kind.shift else None
    problems = unsupported(settings, kind.supported, kind.ignored)
    if kind.shift and not (isinstance(shift, int | float) and not isinstance(shift, bool) and 0 < shift <= 100):
        problems.append(f"{kind.shift} {shift!r} (expected a number above 0, at most 100)")
    refuse(problems)
    flow = {"timestep_shift": shift, "velocity": "to-noise", "whole_timesteps": True} if predicts == "flow" else {}
    return SamplerDefaults.model_validate(
        {"name": kind.sampler, "steps": steps or kind.steps, "guidance": guidance, **flow}
    )


def unsupported(settings: Mapping[str, Any], supported: Mapping[str, Any], ignored: Sequence[str]) -> list[str]:
    """Return a phrase for each setting that a sampler cannot honour.

    Args:
        settings: settings of a file, by name.
        supported: setting -> the one value of it that the sampler computes.
        ignored: settings without any effect. One that is in neither is a problem unless it is off.
    """
    others = [
        f"{key} {settings[key]!r} (expected {value!r})"
        for key, value in supported.items()
        if key in settings and settings[key] != value
    ]
    unknown = [
        f"{key} {value!r} (unknown here)"
        for key, value in settings.items()
        if key not in supported and key not in ignored and value is not None and value is not False
    ]
    return [*others, *unknown]


def refuse(problems: Sequence[str]) -> None:
    """Refuse a ``scheduler_config.json`` that has problems, such as those of :func:`unsupported`.

    Raises:
        CheckpointError: there are problems; lists all of them.
    """
    if problems:
        raise CheckpointError(
            f"scheduler_config.json asks for what is not supported: {', '.join(problems)}; pass the published file of"
            " the model"
        )
