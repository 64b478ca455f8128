"""Resolves a policy's measures for a bundle: roles become sites, and what cannot be measured is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.bundle.signals import Space
from adacache_engines.errors import InputError, PolicyError
from adacache_runtime.caching.policy import (
    BLOCK_INPUT,
    CONDITIONAL_VELOCITY,
    DEFAULT,
    FIRST,
    LATENTS,
    TIME,
    TIME_MODULATION,
    VELOCITY,
    Granularity,
    Measure,
    Needs,
)

ROLES = (DEFAULT, BLOCK_INPUT)
# spaces of the tensors that are shown at sites of one name in all models; the others show the hidden state
SPACES: Mapping[str, Space] = {
    LATENTS: "latents",
    VELOCITY: "latents",
    CONDITIONAL_VELOCITY: "latents",
    TIME: TIME,
    TIME_MODULATION: TIME_MODULATION,
}


def space_of(site: str) -> Space:
    """Return the space of the tensor that a site shows."""
    return SPACES.get(site, "hidden")


def resolve(manifest: Manifest, needs: Needs, granularity: Granularity) -> tuple[Measure, ...]:
    """Return a policy's measures with the bundle's own sites for roles, in the order of execution.

    Args:
        manifest: manifest of the bundle.
        needs: what the policy asks for.
        granularity: granularity of the groups.

    Raises:
        InputError: the bundle lacks a probe or a signal; says which option of ``adacache-export`` adds it.
        PolicyError: a site does not show what is asked of it, or not in these calls.
    """
    known = manifest.probes()
    before = [LATENTS, *(site for site, stage in known.items() if not stage.block), FIRST]
    after = [*(site for site, stage in known.items() if stage.block), CONDITIONAL_VELOCITY, VELOCITY]
    order = [*before, *after]
    measures: list[Measure] = []
    for measure in needs.measures:
        sites = manifest.sites(measure.site) if measure.site in ROLES else (measure.site,)
        measures += [replace(measure, site=site) for site in sites or (measure.site,)]
    _check_sites(measures, order, list(known))
    for measure in measures:
        _check_signals(manifest, measure)
        if measure.early and measure.site not in before:
            raise PolicyError(
                f"the policy measures {measure.site} in all calls, and it is shown only in calls that compute it: "
                "measure it in computed calls"
            )
        if measure.site == FIRST and (granularity == "model" or not needs.residuals):
            raise PolicyError(
                "the policy measures the residual of the first group, of which none is kept here: choose another "
                "granularity than model, and a policy whose needs say that it keeps residuals"
            )
    return tuple(sorted(measures, key=lambda measure: order.index(measure.site)))


def _check_sites(measures: Sequence[Measure], order: Sequence[str], known: Sequence[str]) -> None:
    missing = [measure.site for measure in measures if measure.site not in order]
    unshown = next((site for site in missing if site in (TIME, TIME_MODULATION)), None)
    if unshown:
        raise InputError(
            f"the policy measures {unshown}, which this model does not show (it has {', '.join(known) or 'none'}); "
            "choose another policy"
        )
    if missing:
        options = " ".join(f"--probe {site}" for site in dict.fromkeys([*known, *missing]))
        raise InputError(
            f"the policy measures {', '.join(missing)}, which this bundle has no probe for (it has "
            f"{', '.join(known) or 'none'}); export the checkpoint with {options}"
        )


def _check_signals(manifest: Manifest, measure: Measure) -> None:
    space = space_of(measure.site)
    for name in measure.signals:
        if name not in manifest.signals:
            raise InputError(
                f"the policy measures the signal {name}, which this bundle does not have (it has "
                f"{', '.join(manifest.signals) or 'none'}); add it with adacache-export BUNDLE --signal MODULE:NAME"
            )
        if space not in manifest.signals[name].graphs:
            raise PolicyError(
                f"the policy measures the signal {name} of {measure.site}, and it is made for tensors of the shape of "
                f"the {' and the '.join(manifest.signals[name].graphs)} only: measure it at another site"
            )
