"""New plans in the place of old ones: in one step, whatever stops it."""

import hashlib
from pathlib import Path

import pytest

from adacache_engines.bundle.files import Bundle, open_bundle, read_manifest
from adacache_engines.bundle.manifest import PlanSet
from adacache_engines.errors import BundleError
from adacache_engines.tensorrt import plan_builder
from adacache_engines.tensorrt.plans import ENGINES, check_plans
from tests.helpers.gpu import fake_tensorrt
from tests.helpers.model import fake_model

NEW = b"a new plan"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The fake model with plans."""
    return fake_tensorrt.write_plans(fake_model.write_bundle(tmp_path / "fake.adacache"))


def built(bundle: Bundle) -> tuple[Path, str, PlanSet]:
    """A folder of finished new plans with their records, the name of their set, and the set."""
    ((name, old),) = bundle.manifest.plans.items()
    partial = bundle.folder / ENGINES / f".{name}.partial"
    partial.mkdir()
    for entry in old.plans:
        (partial / Path(entry.path).name).write_bytes(NEW)
        (partial / Path(entry.path).with_suffix(".json").name).write_text("{}")
    changes = {"sha256": hashlib.sha256(NEW).hexdigest(), "nbytes": len(NEW)}
    return partial, name, old.model_copy(update={"plans": tuple(one.model_copy(update=changes) for one in old.plans)})


def check(folder: Path) -> PlanSet:
    """Return the plans that the manifest names, which are whole."""
    bundle = open_bundle(folder)
    (plans,) = bundle.manifest.plans.values()
    check_plans(bundle, plans)
    return plans


def test_new_plans_take_the_place_of_old_ones(bundle: Bundle) -> None:
    partial, name, new = built(bundle)
    plan_builder._publish(bundle.folder, partial, name, new)
    assert check(bundle.folder) == new
    assert [path.name for path in (bundle.folder / ENGINES).iterdir()] == [name]
    assert {path.suffix for path in (bundle.folder / ENGINES / name).iterdir()} == {".plan"}


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), BundleError("the disk is full")])
def test_a_failure_leaves_the_old_plans_and_keeps_the_new_ones(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    def fail(*_arguments: object) -> None:
        raise raised

    partial, name, new = built(bundle)
    files = sorted(path.name for path in partial.iterdir())
    with monkeypatch.context() as patch, pytest.raises(type(raised)):
        patch.setattr(plan_builder, "replace_manifest", fail)
        plan_builder._publish(bundle.folder, partial, name, new)
    assert check(bundle.folder) == bundle.manifest.plans[name]
    assert sorted(path.name for path in partial.iterdir()) == files
    plan_builder._publish(bundle.folder, partial, name, new)
    assert check(bundle.folder) == new


def test_what_a_killed_process_moved_away_is_put_back(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    partial, name, new = built(bundle)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(plan_builder, "replace_manifest", killed)
        patch.setattr(plan_builder, "_exchange", lambda *_: None)  # a killed process does no more
        plan_builder._publish(bundle.folder, partial, name, new)
    with pytest.raises(BundleError):
        check(bundle.folder)
    opened = open_bundle(bundle.folder)
    plan_builder._put_back(opened, name, opened.manifest.plans[name])
    assert check(bundle.folder) == read_manifest(bundle.folder).plans[name] == bundle.manifest.plans[name]
    assert partial.is_dir()
    plan_builder._put_back(opened, name, opened.manifest.plans[name])  # there is nothing to put back
    assert check(bundle.folder) == bundle.manifest.plans[name]
