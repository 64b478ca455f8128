"""Fakes, small models, references and recorded originals that several tests share."""
