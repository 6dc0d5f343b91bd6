"""The controller: plan, run, record, report."""

__version__ = "0.1.0"
