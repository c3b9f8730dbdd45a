-- A participant of bench/twophase: accounts, a thousand for each client.

CREATE TABLE acc (id int PRIMARY KEY, bal bigint NOT NULL) WITH (fillfactor = 50);
INSERT INTO acc SELECT i, 1000000 FROM generate_series(1, 16000) i;
GRANT ALL ON acc TO bench;
VACUUM (FREEZE, ANALYZE) acc;
