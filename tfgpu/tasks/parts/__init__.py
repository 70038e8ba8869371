"""Pieces that tasks are made of: reports, predictors, serving signatures."""
