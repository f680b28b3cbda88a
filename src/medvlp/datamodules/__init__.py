"""Corpora to batches: split, fraction, transform, collate, and loaders that resume."""
