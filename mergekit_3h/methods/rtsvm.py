"""The mergekit merge method ``rtsvm``."""

from mergekit_3h.methods.singular_vectors import SingularVectorMethod

METHOD = SingularVectorMethod("rtsvm")
