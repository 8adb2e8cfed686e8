"""Contract suites: what every part of a kind must do, as test classes to inherit. They need pytest."""
