"""Stands in for mergekit 0.1.5 on interpreters that lack it: the same registry, and nothing to merge with."""
