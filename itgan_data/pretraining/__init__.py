"""Training of generators."""
