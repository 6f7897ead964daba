-- Ingress keys: digests only, never a key. Times are Unix seconds.

CREATE TABLE store (
  one        INTEGER PRIMARY KEY CHECK (one = 1),
  generation INTEGER NOT NULL, -- one more with each change of the keys
  pepper_id  TEXT    NOT NULL  -- of the pepper that the digests were made with
);

CREATE TABLE keys (
  number     INTEGER PRIMARY KEY, -- the order of making
  id         TEXT    NOT NULL UNIQUE,
  digest     BLOB    NOT NULL UNIQUE CHECK (typeof(digest) = 'blob' AND length(digest) = 32),
  name       TEXT    NOT NULL,
  pepper_id  TEXT    NOT NULL,
  plan       TEXT    NOT NULL,
  overrides  TEXT    NOT NULL, -- JSON
  state      TEXT    NOT NULL CHECK (state IN ('active', 'disabled', 'revoked')),
  created    INTEGER NOT NULL,
  not_before INTEGER NOT NULL,
  expires    INTEGER,          -- NULL: never
  "foreign"  INTEGER NOT NULL CHECK ("foreign" IN (0, 1))
);

CREATE INDEX keys_name ON keys (name); -- unique among those not revoked, which `create` sees to: a rotation may overlap

CREATE TABLE audit (
  number     INTEGER PRIMARY KEY,
  at         INTEGER NOT NULL,
  uid        INTEGER NOT NULL, -- who asked, by the kernel's word
  action     TEXT    NOT NULL,
  key_id     TEXT    NOT NULL,
  generation INTEGER NOT NULL  -- that the change made
);
