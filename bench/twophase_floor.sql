-- What bench/twophase writes on the coordinator: a row for each transfer, and the floor's
-- decisions.

CREATE TABLE transfer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account int NOT NULL, amount int NOT NULL);
CREATE TABLE decision (gid text PRIMARY KEY, decided_at timestamptz NOT NULL DEFAULT now());
GRANT ALL ON transfer, decision TO bench;
