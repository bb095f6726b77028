"""Where is a database, for psycopg and for a process of its own, and what is in it?"""

from tests.catalog import fingerprint


def look(database):
    with database.cursor() as cursor:
        return fingerprint(cursor)


def conninfo(database):
    """Connection parameters for psycopg, as Django's connection has them."""
    known = database.get_connection_params()
    return {name: known[name] for name in ("dbname", "user", "password", "host", "port") if known.get(name)}


def url(database, **instead):
    parameters = {**conninfo(database), **instead}
    host, port = parameters.get("host", "localhost").replace("/", "%2F"), parameters.get("port", "")
    user, password = parameters.get("user", ""), parameters.get("password", "")
    return f"postgresql://{user}:{password}@{host}:{port}/{parameters['dbname']}"
