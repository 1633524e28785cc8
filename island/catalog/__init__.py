"""Datasets: records, cards, search, coverage, publishing."""
