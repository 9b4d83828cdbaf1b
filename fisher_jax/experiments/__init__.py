"""Measurements that need many networks, or trained ones: each beside what theory says."""
