"""Shared library of the posterior-collapse replication notebooks."""

__version__ = "0.1.0"
