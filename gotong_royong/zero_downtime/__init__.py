"""Zero-downtime migrations for Django on PostgreSQL.

The rooms, in the order in which they may import one another:

- ``autodetector``: which changes the models have made, split into migrations with timestamped names.
- ``management/commands``: ``makemigrations`` and ``migrate``, which share that autodetector.
"""
