"""Measure a training set by the networks that it trains."""

from .protocol import evaluate
from .results import SeedResult, Summary, summarize

__all__ = ["SeedResult", "Summary", "evaluate", "summarize"]
