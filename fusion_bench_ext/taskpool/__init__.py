"""FusionBench task pools."""

from fusion_bench_ext.taskpool.three_h import ThreeHTaskPool as ThreeHTaskPool
