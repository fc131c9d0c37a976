"""Kernel mechanisms, one file each: the only place that uses ctypes."""
