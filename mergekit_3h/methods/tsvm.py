"""The mergekit merge method ``tsvm``."""

from mergekit_3h.methods.singular_vectors import SingularVectorMethod

METHOD = SingularVectorMethod("tsvm")
