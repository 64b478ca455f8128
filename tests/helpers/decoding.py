"""What tests share with ``test_decode``."""

from adacache_engines.bundle.manifest import LatentSpace
from tests.helpers.fake_model import WIDTH, graph, spec

FACTOR = 2


DECODER = graph(
    "decoder",
    (spec("latents", "images", WIDTH, "height", "width"),),
    (spec("pixels", "images", 3, "pixel_height", "pixel_width"),),
)


SPACE = LatentSpace(
    channels=WIDTH,
    patch=(1, 1, 1),
    spatial_factor=FACTOR,
    decoder="autoencoder-kl",
    decoding=(DECODER,),
)
