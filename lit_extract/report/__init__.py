"""The report: a page about features."""
