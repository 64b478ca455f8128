"""What a policy measures, in the terms of a bundle."""

from dataclasses import replace

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.errors import InputError, PolicyError
from adacache_runtime.caching.policy import DEFAULT, FIRST, LATENTS, VELOCITY, Granularity, Measure, Needs


def resolve(manifest: Manifest, needs: Needs, granularity: Granularity) -> tuple[Measure, ...]:
    """A policy's measures with the bundle's own sites for the default one, in the order of execution.

    Raises:
        InputError: the bundle has no such probe; says which option of the export adds it.
        PolicyError: a site does not show what is asked of it, or not in these calls.
    """
    known = manifest.probes()
    before = [LATENTS, *(site for site, stage in known.items() if not stage.block), FIRST]
    after = [*(site for site, stage in known.items() if stage.block), VELOCITY]
    order = [*before, *after]
    measures: list[Measure] = []
    for measure in needs.measures:
        sites = manifest.sites("default") if measure.site == DEFAULT else (measure.site,)
        measures += [replace(measure, site=site) for site in sites]
    missing = [measure.site for measure in measures if measure.site not in order]
    if missing:
        options = " ".join(f"--probe {site}" for site in dict.fromkeys([*known, *missing]))
        raise InputError(
            f"the policy measures {', '.join(missing)}, which this bundle has no probe for (it has "
            f"{', '.join(known) or 'none'}); export the checkpoint with {options}"
        )
    for measure in measures:
        if measure.early and measure.site not in before:
            raise PolicyError(
                f"the policy measures {measure.site} in all calls, and blocks show something only where they are "
                "computed: measure it in computed calls"
            )
        if measure.site in (LATENTS, VELOCITY) and measure.strides:
            raise PolicyError(f"the policy measures the motion of {measure.site}, and only a probe's can be measured")
        if measure.site == FIRST and (granularity == "model" or not needs.residuals):
            raise PolicyError(
                "the policy measures the residual of the first group, of which none is kept here: choose another "
                "granularity than model, and a policy whose needs say that it keeps residuals"
            )
    return tuple(sorted(measures, key=lambda measure: order.index(measure.site)))
