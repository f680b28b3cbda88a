"""Metrics: torchmetrics subclasses and pure functions for what torchmetrics lacks."""
