"""Safety and domain data: records and their store, importers, splits, statistics, guards and judges.

Uses neither the kernels nor the search. Importing it imports pydantic only; models, servers, Parquet and
plots load in the functions that need them.
"""
