-- What the floor is made of, and the table that the steps of sagas write to.

CREATE TABLE biz (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, saga bigint NOT NULL, step int NOT NULL);
CREATE TABLE state (id bigint PRIMARY KEY, step int NOT NULL DEFAULT 0, changed_at timestamptz NOT NULL DEFAULT now())
  WITH (fillfactor = 90);
INSERT INTO state (id) SELECT generate_series(1, 1000000);
GRANT ALL ON biz, state TO bench;
VACUUM (FREEZE, ANALYZE) state;

-- A bare queue.
CREATE TABLE job (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload jsonb NOT NULL);
GRANT ALL ON job TO bench;
