"""recalcd: keeps cached report tables true."""

__version__ = "0.1.0"
