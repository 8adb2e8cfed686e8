"""FusionBench algorithms."""
