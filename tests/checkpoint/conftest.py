import pytest

# What it asserts is shown as in tests.
pytest.register_assert_rewrite("stores")
