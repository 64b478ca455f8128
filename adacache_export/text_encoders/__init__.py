"""Text encoders as stages, one folder a kind; :mod:`adacache_export.text_encoders.registry` knows them all."""
