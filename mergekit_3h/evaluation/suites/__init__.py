"""The suites that come with the package, and the files of the small one."""
