"""A shop whose orders people read and change while a migration runs: the app of the part "victims".

It has migrations only. The first makes the tables; the second is the trial that the process was told to run.
"""
