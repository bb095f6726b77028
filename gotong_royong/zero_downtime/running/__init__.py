"""How are migrations applied and taken back, and what is known of that?

- ``watchdog``: whom does a migration block, and for how long? ``backstop``: who cancels it if the watchdog cannot?
  ``code``: may Python of a migration run again? ``guard``: how does a connection keep to the lock budget?
- ``history``: what does the ledger know of migrations? ``loader``: how are migrations read? ``ledger``: how does a run
  write what it does? ``states``: which models does an operation see?
- ``diagnosis``: what is wrong with a file, an argument or the database, in one sentence?
- ``signals``: who hears of a run? ``undo``: how is a migration taken back? ``recall``: do the files,
  ``django_migrations`` and the ledger agree? ``progress``: how does one step go? ``rollback``: what is taken back?
- ``backups``: how is the database saved before a run? ``executor``: how is a plan carried out? ``plan``: what would it
  do to this database? ``losses``: what would a rollback destroy? ``reports``: how does a run show what it does?
"""
