"""FusionBench algorithms, task pools and configs."""
