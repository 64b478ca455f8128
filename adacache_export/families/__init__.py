"""The models that can be exported: one folder a family; :mod:`adacache_export.families.registry` knows them all."""
