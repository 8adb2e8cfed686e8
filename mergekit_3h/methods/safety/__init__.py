"""``safety_merge`` under mergekit: a config read as a search problem, searched once, and merged with fixed weights."""
