"""What is PostgreSQL asked, and what is it told?

- ``statements``: which statements does a string of SQL hold, and what is each? ``changes``: what does it change?
- ``journal``: what did each operation of a step do?
- ``locks``: lock modes, timeouts, retries, and the lock that keeps two runs apart.
- ``catalog``: questions to the catalog. ``programs``: how are ``initdb`` and others run?
- ``definitions``: is what is there what is wanted? ``effects``: what does a statement of the editor change?
- ``schema``: DDL that may run twice. ``editors``: which editor does a connection get?
"""
