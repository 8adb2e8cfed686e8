"""A Ray cluster: its options, the connection, and a pool of workers. Knows nothing of merging."""
