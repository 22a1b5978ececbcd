"""Measure a training set by the networks that it trains."""

from .protocol import SeedResult, Summary, evaluate, summarize

__all__ = ["SeedResult", "Summary", "evaluate", "summarize"]
