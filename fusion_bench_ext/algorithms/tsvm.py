"""The FusionBench algorithm ``TSVM``."""

from fusion_bench_ext.algorithms.singular_vectors import SingularVectorAlgorithm


class TSVM(SingularVectorAlgorithm):
    """Task Singular Vector Merging, arXiv 2412.00081; options as in ``mergekit_3h.options.TSVMOptions``."""

    method = "tsvm"
