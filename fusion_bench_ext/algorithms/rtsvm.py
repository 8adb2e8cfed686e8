"""The FusionBench algorithm ``RTSVM``."""

from fusion_bench_ext.algorithms.singular_vectors import SingularVectorAlgorithm


class RTSVM(SingularVectorAlgorithm):
    """Reweighted TSVM (RESM), arXiv 2502.06876; options as in ``mergekit_3h.options.RTSVMOptions``."""

    method = "rtsvm"
