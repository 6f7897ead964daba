"""Measurements that anyone can repeat: one file a scenario, see README.md."""
