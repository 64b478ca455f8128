"""Jobs and models in the form in which clients see them."""

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.video_sizes import durations_of, usual_aspect
from adacache_runtime.conditioning.image_states import can_encode_images
from adacache_runtime.denoising.segments import guidance_scales
from adacache_runtime.policy_names import available_policies
from adacache_runtime.samplers.registry import samplers_of
from adacache_runtime.vae.encode import can_encode
from adacache_serve.http.schema import Failure, Model, NamedSize, Policy, TraceNumbers, Video
from adacache_serve.jobs.progress import numbers
from adacache_serve.jobs.service import Service
from adacache_serve.jobs.store import Job


def model_of(name: str, bundle: Bundle) -> Model:
    """Describe the bundle that is served under this name."""
    manifest = bundle.manifest
    video, sampler = manifest.video, manifest.sampler
    return Model(
        id=name,
        family=manifest.family,
        precision=manifest.precision,
        defaults={
            "width": video.width,
            "height": video.height,
            "frames": video.frames,
            "fps": video.fps,
            "steps": sampler.steps,
            **dict(zip(("guidance", "guidance_2"), guidance_scales(manifest), strict=False)),
        },
        sizes=[
            NamedSize(
                name=size,
                aspect=usual_aspect(manifest.names, size),
                aspects={aspect: f"{width}x{height}" for aspect, (width, height) in aspects.items()},
            )
            for size, aspects in manifest.names.sizes.items()
        ],
        durations=durations_of(manifest),
        samplers=sorted(samplers_of(manifest), key=lambda other: other != sampler.name),
        policies=[Policy(name=info.name, note=info.note, why_not=info.why_not) for info in available_policies(bundle)],
        negative_prompt=manifest.guidance.null_captions is None,
        image=manifest.conditioning in ("kept-frames", "encoded-video")
        and can_encode(manifest.latent)
        and can_encode_images(manifest.image),
        image_required=manifest.conditioning == "encoded-video",
    )


def shown(job: Job, service: Service) -> Video:
    """Describe a job."""
    progress = service.progress(job.id) if job.status == "in_progress" else None
    trace = numbers(progress.calls, progress.of) if progress is not None and progress.calls else job.trace
    keep = service.settings.keep_seconds
    available = job.status == "completed" and job.content is not None
    return Video(
        id=job.id,
        status=job.status,
        progress=100.0
        if job.status == "completed" or job.made
        else progress.percent()
        if progress is not None
        else 0.0,
        model=job.model,
        created_at=job.created,
        started_at=job.started,
        completed_at=job.ended,
        expires_at=job.ended + keep if available and keep is not None and job.ended is not None else None,
        request=job.order.model_dump(exclude={"image"}, exclude_none=True),
        attempts=job.attempts,
        error=Failure(**job.error) if job.error else None,
        trace=TraceNumbers(**trace) if trace else None,
        content=f"/v1/videos/{job.id}/content" if available else None,
    )
