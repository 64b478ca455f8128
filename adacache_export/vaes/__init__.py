"""VAEs as stages, one folder a kind; :mod:`adacache_export.vaes.registry` knows them all."""
