"""The families of models that can be exported, each in a folder; the registry lists them all."""
