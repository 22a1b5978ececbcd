"""Generators, as they serve: built, frozen, stored and sampled."""
