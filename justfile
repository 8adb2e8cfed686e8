# One-word commands for working on the project; CONTRIBUTING.md says what they are for.

python := ".venv/bin/python"

# All tests, a process for each core
test:
    {{python}} -m pytest -n auto --dist loadfile

# The tests that take under ten seconds each
quick:
    {{python}} -m pytest -n auto --dist loadfile -m "not slow"

# As CI runs them
lint:
    bash .ci/lint

# Formats the code, and mends what ruff can mend
format:
    .venv/bin/ruff check --fix .
    .venv/bin/ruff format .

# What has to pass before a change lands, in a clean environment
ci:
    bash .ci/run
