"""Zero-downtime migrations for Django on PostgreSQL.

The wings, in the order in which they may import one another; the docstring of each lists its rooms:

- ``conf``: the settings. ``exceptions``: what can go wrong. ``apps``: what Django calls this app.
- ``postgres``: what is PostgreSQL asked, and what is it told?
- ``stages``: does a migration come before or after the deploy?
- ``models``: the ledger, which records runs and steps, and the backfills.
- ``backfills``: how do the rows of a large table change while others use it?
- ``operations``: what may stand in a migration beside Django's own operations?
- ``running``: how are migrations applied and taken back, and what is known of what was done?
- ``linter``: what does a migration lock, scan, rewrite and break?
- ``authoring``: which migrations does an edit of the models need?
- ``tasks``, ``admin``, ``management``, ``checks``: what people and Django call; these parse and print.
"""
