"""Stands in for skops, whose import takes seconds, in the process that predicts."""
