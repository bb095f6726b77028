"""What does a migration cost the people who use the database, and the developer who waits for it?

``make bench`` runs the parts that ``__main__`` lists and prints a table for each. A part is a module with one
function, ``run(options)``. These are benchmarks: the figures depend on the machine and nothing passes or fails.
"""
