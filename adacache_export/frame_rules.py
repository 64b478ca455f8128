"""How frames become latent frames: the rules by which a transformer and its VAE belong together."""

from adacache_engines.bundle.latent_space import FrameRule

EACH_FRAME = FrameRule()  # a latent frame each: models of pixels, and VAEs of single images
CHUNKS_OF_17 = FrameRule(chunk_frames=17, chunk_latents=5, stretch=4)  # Open-Sora 1.2's VAE
FIRST_THEN_FOURS = FrameRule(chunk_frames=None, stretch=4, first_alone="odd")  # CausalVAE of Open-Sora-Plan
FIRST_ALONE_THEN_FOURS = FrameRule(chunk_frames=None, stretch=4, first_alone="always", whole=True)  # Wan
