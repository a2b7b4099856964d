"""Closed forms, one file a model family: float64, no model classes, no training."""
