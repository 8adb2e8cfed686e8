"""mergekit merge methods. Importing this package registers them with mergekit."""
