"""How are migrations applied and taken back, and what is known of what was done?

- ``watchdog``: a session that sees whom a statement blocks and cancels it. ``backstop``: the server, where that session
  stands still. ``code``: may code of a migration run again? ``guard``: the lock budget around a run.
- ``history``: what does the ledger know of applied migrations? ``loader``: reads the migrations. ``ledger``: writes
  runs and steps. ``states``: which models does an operation find?
- ``diagnosis``: what is wrong with a file, an argument or the database, in one sentence?
- ``signals``: who hears of a run. ``undo``: takes back what was done. ``recall``: compares files, ``django_migrations``
  and the ledger. ``progress``: how does one step go? ``rollback``: chooses what to take back.
- ``backups``: the database in a file. ``executor``: carries a plan out. ``plan``: what would it do to this database?
  ``losses``: what would a way back destroy? ``reports``: how does a run show what it does?
"""
