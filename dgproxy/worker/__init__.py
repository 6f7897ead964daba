"""The data plane: one process of many, with its own loop, listeners and snapshot. It opens no database."""
