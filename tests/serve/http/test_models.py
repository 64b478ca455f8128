"""The models that the API lists, and their policies."""

from dataclasses import replace
from pathlib import Path

import pytest

from adacache_engines.bundle.files import Bundle
from adacache_serve.http.views import model_of
from adacache_serve.orders.check import FieldError, check
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings
from tests.helpers.model.experts import GUIDANCES, two_experts
from tests.helpers.serving.fake_server import write_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_model(tmp_path_factory.mktemp("models") / "fake")


def refusal(bundle: Bundle, policy: str) -> str | None:
    try:
        check(CreateVideo(prompt="boat", policy=policy), bundle, Settings(Path()))
    except FieldError as error:
        assert error.field == "policy"
        return str(error)
    return None


def test_the_samplers_are_those_that_fit_the_model(bundle: Bundle) -> None:
    def listed(name: str) -> list[str]:
        sampler = bundle.manifest.sampler.model_copy(update={"name": name})
        manifest = bundle.manifest.model_copy(update={"sampler": sampler})
        return model_of("fake", replace(bundle, manifest=manifest)).samplers

    assert listed("unipc") == ["unipc", "rflow", "euler"]
    assert listed("pndm") == ["pndm", "ddim"]


def test_a_policy_that_the_model_cannot_run_is_marked_with_the_reason(bundle: Bundle) -> None:
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"signals": {}}))
    listed = {policy.name: policy.why_not for policy in model_of("fake", bundle).policies}
    assert listed["never"] is None
    assert listed == {name: refusal(bundle, name) for name in listed}
    unable = {name for name, why_not in listed.items() if why_not}
    assert "adacache-fast" in unable
    assert {"never", "interval-2"}.isdisjoint(unable)


def test_a_model_of_two_experts_has_two_guidance_scales(tmp_path: Path, bundle: Bundle) -> None:
    """Clients may choose the second one, which other models refuse by the name of the field."""
    experts = write_model(tmp_path / "experts", **two_experts())
    usual = [model_of("fake", one).defaults for one in (bundle, experts)]
    assert [(one["guidance"], one.get("guidance_2")) for one in usual] == [(2.0, None), GUIDANCES]
    order = CreateVideo(prompt="boat", guidance_2=1.5)
    segments = check(order, experts, Settings(Path())).segments
    assert [segment.guidance for segment in segments] == [GUIDANCES[0], 1.5]
    with pytest.raises(FieldError, match="one guidance scale") as refused:
        check(order, bundle, Settings(Path()))
    assert refused.value.field == "guidance_2"
