"""Generations of one Wan that :mod:`tools.speed.peers` compares: by diffusers, by caches for it, and by a bundle.

A generation advances a call at a time, and says of each call whether every block was computed. In torch that is seen at
the last block's MLP, whatever a cache has put around the blocks. All have the same weights, noise, text, guidance and
sampler, and both guidance branches are one batch, so that a cache decides for them together.
"""

import gc
import importlib.util
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adacache_engines.errors import require
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.measured.fbcache import FBCache
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from tools.speed.calls import EVERY_THIRD
from tools.speed.wan import BRANCHES, GUIDANCE, text_of, twin

Generation = Generator[bool, None, NDArray[np.float32]]
EAGER = "diffusers eager"
COMPILED = "diffusers, torch.compile"
FIRST_BLOCK = "diffusers, FirstBlockCache"
DBCACHE = "cache-dit, DBCache"
NEVER, FBCACHE, EASYCACHE, ADACACHE = "never", "fbcache", "easycache", "adacache"  # this project's policies
SAME_RULE: Mapping[str, str] = {FIRST_BLOCK: FBCACHE, DBCACHE: FBCACHE}  # a cache -> the policy that has its rule
PEERS = (COMPILED, FIRST_BLOCK, DBCACHE)  # others' code, which may be missing or fail
PACKAGES: Mapping[str, tuple[str, str]] = {DBCACHE: ("cache_dit", 'pip install "adacache-export[peers]"')}


@dataclass(frozen=True)
class Contender:
    """A way to make the calls of a generation.

    Attributes:
        name: label for people.
        generate: begins a generation, which yields after each call whether all blocks were computed, and returns the
            latents (samples, channels, frames, height, width).
        cache_nbytes: bytes that a run takes more than one without a cache; None = it is measured while it runs.
    """

    name: str
    generate: Callable[[], Generation]
    cache_nbytes: int | None = None

    @property
    def missing(self) -> str | None:
        """The command that installs what the contender needs; None where it is there."""
        package, command = PACKAGES.get(self.name, ("", ""))
        return None if not package or importlib.util.find_spec(package) else command


@dataclass(frozen=True)
class Peer:
    """A transformer of diffusers as a user calls it.

    Attributes:
        call: takes the transformer's arguments and returns what it returns.
        runs: grows by one whenever the last block runs; None = it runs in every call.
    """

    call: Callable[..., Any]
    runs: list[None] | None = None


def watched(module: Any) -> list[None]:
    """Return a list that grows by one whenever the last block of a transformer runs."""
    runs: list[None] = []
    module.blocks[-1].ffn.register_forward_hook(lambda *_: runs.append(None))
    return runs


def eager(model: Any) -> Peer:
    """Return the model as it is."""
    module = twin(model)
    return Peer(module, watched(module))


def compiled(model: Any) -> Peer:
    """Return the model behind ``torch.compile`` with its defaults."""
    return Peer(torch.compile(twin(model)))


def first_block_cache(model: Any, threshold: float) -> Peer:
    """Return the model with diffusers' own hook."""
    hooks: Any = require("diffusers.hooks", "export")  # here: it takes seconds to import
    module = twin(model)
    runs = watched(module)
    module.enable_cache(hooks.FirstBlockCacheConfig(threshold=threshold))

    def call(**given: Any) -> Any:
        with module.cache_context("both branches"):
            return module(**given)

    return Peer(call, runs)


def dbcache(model: Any, threshold: float, steps: int) -> Peer:
    """Return the model with cache-dit's cache, set to FBCache's rule: the first block alone is always computed."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    cache_dit: Any = require("cache_dit", "peers")
    module = twin(model)
    runs = watched(module)
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=threshold,
        max_warmup_steps=0,
        enable_separate_cfg=False,
        num_inference_steps=steps,
    )
    cache_dit.enable_cache(module, cache_config=config)
    return Peer(module, runs)


def in_pytorch(make: Callable[[], Peer], request: Request, shift: float) -> Generation:
    """Make a generation as diffusers' pipeline does, but with both guidance branches in one batch."""
    diffusers: Any = require("diffusers", "export")  # here: it takes seconds to import
    assert request.latents is not None
    peer = make()
    text, latents = torch.from_numpy(text_of(request)), torch.from_numpy(request.latents.copy())
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(request.steps)
    scheduler.set_begin_index(0)
    for timestep in scheduler.timesteps:
        before = len(peer.runs or ())
        with torch.no_grad():
            prediction = peer.call(
                hidden_states=latents.expand(BRANCHES, -1, -1, -1, -1),
                timestep=timestep.expand(BRANCHES),
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
            negative, positive = prediction.chunk(BRANCHES)
            latents = scheduler.step(negative + GUIDANCE * (positive - negative), timestep, latents)[0]
        yield peer.runs is None or len(peer.runs) > before
    made: NDArray[np.float32] = latents.numpy()
    return made


def through_bundle(pipeline: Pipeline, request: Request) -> Generation:
    """Make a generation as ``adacache-run`` does, up to its latents."""
    calls = pipeline.calls(request)
    while True:
        try:
            record = next(calls)
        except StopIteration as ended:
            made: NDArray[np.float32] = ended.value.latents
            return made
        yield record.in_full


def contenders(model: Any, pipeline: Pipeline, request: Request, threshold: float) -> list[Contender]:
    """Return all contenders: diffusers and caches for it, then this project's policies."""
    steps, shift = request.steps, pipeline.bundle.manifest.sampler.timestep_shift
    assert steps is not None
    assert isinstance(shift, float)
    peers: Mapping[str, Callable[[], Peer]] = {
        EAGER: partial(eager, model),
        COMPILED: cache(partial(compiled, model)),  # once: compiling takes a minute
        FIRST_BLOCK: partial(first_block_cache, model, threshold),
        DBCACHE: partial(dbcache, model, threshold, steps),
    }
    policies = (NeverReuse(), FBCache(threshold=threshold), EasyCache(threshold=threshold), EVERY_THIRD)
    requests: dict[str, Request] = {policy.name: replace(request, policy=policy) for policy in policies}
    nbytes = {name: pipeline.prepare(one).memory.run for name, one in requests.items()}
    return [
        *(Contender(name, partial(in_pytorch, make, request, shift)) for name, make in peers.items()),
        *(
            Contender(name, partial(through_bundle, pipeline, one), nbytes[name] - nbytes[NEVER])
            for name, one in requests.items()
        ),
    ]


def torch_nbytes() -> int:
    """Return the bytes of all tensors that torch holds in this process, each memory once."""
    alive = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    storages = [each.untyped_storage() for each in alive if each.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
