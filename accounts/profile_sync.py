"""Which trigger copies ``users`` to ``profiles``, from before the backfill until the old columns are dropped?"""

CREATE = [
    """
    CREATE OR REPLACE FUNCTION sync_profile() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'UPDATE' OR num_nonnulls(NEW.bio, NEW.location, NEW.avatar_url) > 0 THEN
            INSERT INTO profiles (user_id, bio, location, avatar_url)
            VALUES (NEW.id, NEW.bio, NEW.location, NEW.avatar_url)
            ON CONFLICT (user_id) DO UPDATE
            SET bio = excluded.bio, location = excluded.location, avatar_url = excluded.avatar_url;
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE OR REPLACE TRIGGER sync_profile AFTER INSERT OR UPDATE OF bio, location, avatar_url ON users
    FOR EACH ROW EXECUTE FUNCTION sync_profile()
    """,
]
DROP = [
    "DROP TRIGGER IF EXISTS sync_profile ON users",
    "DROP FUNCTION IF EXISTS sync_profile()",
]
