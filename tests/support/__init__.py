"""The real servers and processes that the tests run against."""
