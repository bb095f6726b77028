"""What is PostgreSQL asked, and what is it told?

- ``statements``: which statements does a string of SQL hold? ``changes``: what does each change?
- ``journal``: what did each operation of a step do?
- ``locks``: which locks exist, and how does a run take them?
- ``catalog``: what is in the database? ``programs``: how do ``initdb`` and others run?
- ``definitions``: is an existing object the wanted one? ``effects``: what does a statement of the editor change?
- ``schema``: how does DDL run twice and happen once? ``editors``: which editor does a connection get?
"""
