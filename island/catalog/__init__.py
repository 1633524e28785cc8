"""Datasets: publishing, manifests, records, cards, coverage and search."""
