"""Data sets and loaders whose images a generator makes."""
