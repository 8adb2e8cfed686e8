"""Merge methods by singular vectors, one a file, and what they do to one tensor of a model."""
