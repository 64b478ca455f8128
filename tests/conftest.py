"""What several test files need: bundles of the reference model, each exported once for all of them."""

import fcntl
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from adacache_runtime.pipeline import Pipeline
from tests.helpers.originals.reference import DATA, DEMO, OPEN_SORA
from tests.helpers.tiny_models.exporting import convert_quietly, unlogged

# on all blocks alike: each kind of block is traced once
PROBES = (
    *(
        f"{kind}.{layer}.{site}"
        for kind in ("spatial", "temporal")
        for layer in range(3)
        for site in ("attn", "cross+mlp")
    ),
    "spatial.0.modulated",
)


# so that a failed check shows the numbers, as a failed test does
pytest.register_assert_rewrite("tests.helpers.gpu.gpu_checks")

# A shell lets what it runs in the background ignore these, and the processes that tests start would ignore them, too
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Neither a slow machine nor chance decides whether a test passes: no example has a deadline, and the examples are the
# same in every run. ``pytest --hypothesis-profile random`` looks at other examples each time.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("random"), derandomize=True)
settings.load_profile("repeatable")


# what exports a model beside the reference, so that what needs it is slow
EXPORTS = {"conditioned_folder", "decoding_folder", "demo_bundle", "half_latte", "latte_bundle", "open_sora_vae_bundle"}


@pytest.hookimpl(tryfirst=True)  # before ``-m`` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that export another model than the reference as slow."""
    for item in items:
        if EXPORTS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder once a test run, however many workers share the run."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def make(name: str, build: Callable[[Path], object]) -> Path:
        folder = root / name
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                build(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The reference model as a Hugging Face folder."""

    def build(folder: Path) -> None:
        part = folder.with_suffix(".part")
        part.mkdir()
        shutil.copyfile(OPEN_SORA / "weights_A.safetensors", part / "model.safetensors")
        shutil.copyfile(OPEN_SORA / "config_A.json", part / "config.json")
        part.rename(folder)

    return once("checkpoint-A", build)


@pytest.fixture(scope="session")
def exported(once: Callable[[str, Callable[[Path], object]], Path], checkpoint: Path) -> Callable[..., Path]:
    """Exports the reference model with a precision; in fp32 with more probes."""

    def export(precision: str) -> Path:
        probes = PROBES if precision == "fp32" else ()  # whichever test asks first
        return once(
            f"bundle-A-{precision}",
            lambda folder: convert_quietly(checkpoint, folder, precision=precision, probes=probes),
        )

    return export


@pytest.fixture(scope="session")
def conditioned_folder(once: Callable[[str, Callable[[Path], object]], Path], checkpoint: Path) -> Path:
    """The reference model, exported so that it may keep frames. Not to be changed."""
    return once("bundle-A-conditioned", lambda folder: convert_quietly(checkpoint, folder, conditioning=True))


@pytest.fixture(scope="session")
def demo_bundle(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The demo model with its text encoder: for slow tests. Not to be changed."""
    return once("bundle-demo", lambda folder: convert_quietly(DEMO, folder, text_encoder=DEMO / "text_encoder"))


@pytest.fixture(scope="session")
def latte_bundle(once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[str], Path]:
    """Exports the reference model in a folder of ``data``, ``latte`` or ``open-sora-plan``, with probes on all blocks.
    Tests must not change it.
    """

    def export(name: str) -> Path:
        layers = range({"latte": 3, "open-sora-plan": 4}[name])
        sites = ("spatial.{}.attn", "spatial.{}.cross+mlp", "temporal.{}.attn", "temporal.{}.mlp")
        probes = tuple(site.format(layer) for site in sites for layer in layers)
        return once(f"bundle-{name}", lambda folder: convert_quietly(DATA / name, folder, probes=probes))

    return export


@pytest.fixture(scope="session")
def vae_folder(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """An AutoencoderKL of Stable Diffusion's shape with random weights, as diffusers saves it. Not to be changed."""

    def build(folder: Path) -> None:
        import torch  # here: few tests need it
        from diffusers import AutoencoderKL

        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        )
        part = folder.with_suffix(".part")
        vae.save_pretrained(part)
        part.rename(folder)

    return once("vae", build)


@pytest.fixture(scope="session")
def open_sora_vae_folder(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Open-Sora's VAE as it is published: the reference's temporal half, over a random spatial one that doubles rows
    and columns once. Not to be changed.
    """
    # here: it imports torch, which few tests need
    from tests.helpers.tiny_models.vae_bundle import write_open_sora_vae

    return once("open-sora-vae", lambda folder: write_open_sora_vae(folder, levels=2))


@pytest.fixture(scope="session")
def open_sora_vae_bundle(once: Callable[[str, Callable[[Path], object]], Path], open_sora_vae_folder: Path) -> Path:
    """A bundle of that VAE and no model. Not to be changed."""
    from tests.helpers.tiny_models.vae_bundle import OPEN_SORA_LATENT, write_vae_bundle

    return once("bundle-open-sora-vae", lambda folder: write_vae_bundle(folder, open_sora_vae_folder, OPEN_SORA_LATENT))


@pytest.fixture(scope="session")
def t5_folder(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A T5 encoder with random weights that gives captions for the reference Latte, and its tokenizer in a folder of
    its own, as diffusers saves them. Not to be changed.
    """

    def build(folder: Path) -> None:
        import torch  # here: few tests need it
        import transformers
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        text = "a red blue circle square moves left fast stays still ugly"
        words = ["<pad>", "</s>", "<unk>", *text.split()]
        tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        tokens.add_special_tokens(words[:3])
        tokens.pre_tokenizer = pre_tokenizers.Whitespace()
        tokens.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        torch.manual_seed(0)
        sizes = {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}
        config = transformers.T5Config(vocab_size=len(words), feed_forward_proj="gated-gelu", **sizes)
        part = folder.with_suffix(".part")
        transformers.T5EncoderModel(config).save_pretrained(part / "text_encoder")
        (part / "tokenizer").mkdir()
        tokens.save(str(part / "tokenizer" / "tokenizer.json"))
        part.rename(folder)

    return once("t5", build) / "text_encoder"


@pytest.fixture(scope="session")
def decoding_folder(
    once: Callable[[str, Callable[[Path], object]], Path],
    latte_bundle: Callable[[str], Path],
    vae_folder: Path,
    t5_folder: Path,
) -> Path:
    """The bundle of the reference Latte, with a text encoder and a decoder. Not to be changed."""

    def build(folder: Path) -> None:
        from adacache_export.options import PartOptions
        from adacache_export.parts.add_parts import add_parts
        from adacache_export.phases import Progress

        part = Path(shutil.copytree(latte_bundle("latte"), folder.with_suffix(".part")))
        with unlogged():
            add_parts(part, PartOptions(text_encoder=t5_folder, vae=vae_folder), Progress())
        part.rename(folder)

    return once("bundle-latte-decoding", build)


@pytest.fixture(scope="session")
def half_latte(once: Callable[[str, Callable[[Path], object]], Path], vae_folder: Path, t5_folder: Path) -> Path:
    """The reference Latte in float16, exported with a text encoder and a decoder: for slow tests. Not to be changed."""
    chosen = {"precision": "fp16", "vae": vae_folder, "text_encoder": t5_folder}
    return once("bundle-latte-fp16", lambda folder: convert_quietly(DATA / "latte", folder, **chosen))


@pytest.fixture(scope="session")
def bundle_folder(exported: Callable[..., Path]) -> Path:
    """The reference model in float32. Tests must not change it."""
    return exported("fp32")


@pytest.fixture(scope="session")
def pipeline(bundle_folder: Path) -> Pipeline:
    return Pipeline.open(bundle_folder)
