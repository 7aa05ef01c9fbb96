"""Shared library of the Parallax services: contracts, bus, database access and service runtime."""

__version__ = "0.1.0"
