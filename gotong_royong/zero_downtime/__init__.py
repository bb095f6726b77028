"""Zero-downtime migrations for Django on PostgreSQL.

The rooms, in the order in which they may import one another:

- ``conf``, ``exceptions``: settings, what can go wrong. ``programs``: how PostgreSQL's own are run.
- ``journal``: what each operation of a step did to the database.
- ``stages``: does a migration come before or after the deploy?
- ``statements``: which statements a string of SQL holds, and what each of them is.
- ``locks``: lock modes, the retry ladder, the lock that keeps two runs apart.
- ``catalog``: questions to PostgreSQL's catalog. ``definitions``: is what is there what is wanted?
  ``effects``: what does a statement of Django's editor change? ``schema``: DDL that may run twice.
  ``editors``: which editor does that on a connection?
- ``watchdog``: the session that sees whom a statement blocks. ``backstop``: the server, in its stead.
  ``guard``: the lock budget around a run. ``code``: what code of a migration may count on, and may it run again?
- ``models``: the ledger, Run and Step, and the backfills. ``ledger``: writes it. ``history``: what it remembers of the
  applied migrations, and whether their files have been edited. ``loader``: reads the migrations.
- ``backfills``: changes of data over large tables, in the background; declared in an app's ``backfills.py``.
- ``operations``: what may stand in a migration beside Django's own, such as ``RunBackfill``.
- ``autodetector``: which changes the models have made, in migrations with timestamped names.
- ``states``: which models an operation finds, without rendering all others.
- ``linter``: what a migration locks, scans, rewrites and breaks, by running it.
- ``mistakes``: what is wrong with a migration file, an argument or the database, in one sentence, which commands say.
- ``executor``: carries a plan out under the budget. ``progress``: how one step of it goes. ``undo``: takes exactly that
  back which was done. ``rollback``: chooses what to take back.
  ``signals``: who hears of it.
- ``losses``: what a way back may destroy, and where it must fail.
- ``plan``: what a plan would do to this database. ``reports``: how a run shows what it does.
- ``backups``: the database in a file, as it was before a run.
- ``tasks``: backfills on the workers of a queue. ``admin``: backfills in Django's admin.
- ``management/commands``: ``makemigrations``, ``lintmigrations``, ``migrate``, ``showmigrations``, ``rollback``,
  ``backfill``; they parse and print.
"""
