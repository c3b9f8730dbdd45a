-- What scripts/demo shows.  Run by psql in an empty database.

\pset footer off
\pset linestyle unicode
\pset border 1
\pset null '-'
SET client_min_messages = warning;

CREATE EXTENSION coord;

-- The shop belongs to an ordinary role: steps run with its rights, not with a
-- superuser's.  (pg_read_all_stats is for the journal below, not for coord.)
CREATE ROLE shop;
GRANT coord_user, pg_read_all_stats TO shop;
CREATE SCHEMA shop AUTHORIZATION shop;
SET ROLE shop;

CREATE TABLE shop.stock (item text PRIMARY KEY, on_hand int NOT NULL CHECK (on_hand >= 0));
CREATE TABLE shop.orders (id int PRIMARY KEY, item text NOT NULL REFERENCES shop.stock,
  quantity int NOT NULL, amount numeric NOT NULL, address text, shipped boolean NOT NULL DEFAULT false);
CREATE TABLE shop.payments (order_id int NOT NULL REFERENCES shop.orders, amount numeric NOT NULL, why text NOT NULL);
CREATE TABLE shop.journal (n int GENERATED ALWAYS AS IDENTITY, saga_id bigint NOT NULL, function text NOT NULL,
  pid int NOT NULL, backend_type text, role name NOT NULL);

INSERT INTO shop.stock VALUES ('kettle', 10);
INSERT INTO shop.orders VALUES
  (1, 'kettle', 2, 59.80, '12 Canal Street'),
  (2, 'kettle', 3, 89.70, NULL);

-- Who is running this?
CREATE FUNCTION shop.note(context jsonb, function text) RETURNS void LANGUAGE sql AS $$
  INSERT INTO shop.journal (saga_id, function, pid, backend_type, role)
  SELECT (context->>'saga_id')::bigint, function, pg_backend_pid(),
    (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()), current_user
$$;

CREATE FUNCTION shop.the_order(context jsonb) RETURNS shop.orders LANGUAGE sql AS $$
  SELECT o FROM shop.orders o WHERE id = (context->'input'->>'order_id')::int
$$;

CREATE FUNCTION shop.reserve_stock(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  o shop.orders := shop.the_order(context);
BEGIN
  UPDATE shop.stock SET on_hand = on_hand - o.quantity WHERE item = o.item;
  PERFORM shop.note(context, 'reserve_stock');
  RETURN jsonb_build_object('reserved', o.quantity);
END $$;

-- A compensation gets the result of the step that it undoes.
CREATE FUNCTION shop.release_stock(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  o shop.orders := shop.the_order(context);
BEGIN
  UPDATE shop.stock SET on_hand = on_hand + (context->'result'->>'reserved')::int WHERE item = o.item;
  PERFORM shop.note(context, 'release_stock');
END $$;

CREATE FUNCTION shop.charge(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  o shop.orders := shop.the_order(context);
BEGIN
  INSERT INTO shop.payments VALUES (o.id, o.amount, 'charged');
  PERFORM shop.note(context, 'charge');
  RETURN jsonb_build_object('charged', o.amount);
END $$;

CREATE FUNCTION shop.refund(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  o shop.orders := shop.the_order(context);
BEGIN
  INSERT INTO shop.payments VALUES (o.id, -(context->'result'->>'charged')::numeric, 'refunded');
  PERFORM shop.note(context, 'refund');
END $$;

CREATE FUNCTION shop.ship(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  o shop.orders := shop.the_order(context);
BEGIN
  PERFORM shop.note(context, 'ship');
  UPDATE shop.orders SET shipped = true WHERE id = o.id;
  IF o.address IS NULL THEN
    RAISE EXCEPTION 'order % has no address', o.id;
  END IF;
  RETURN jsonb_build_object('shipped_to', o.address);
END $$;

\echo
\echo '=== A shop with ten kettles and two orders; the second has no address.'
\echo
SELECT * FROM shop.stock;
SELECT * FROM shop.orders ORDER BY id;

\echo '=== An order is a saga of three steps. Two of them can be undone.'
\echo
\set ECHO queries
SELECT coord.saga_define('order', ARRAY[
  coord.step('reserve', 'shop.reserve_stock', compensation => 'shop.release_stock'),
  coord.step('charge',  'shop.charge',        compensation => 'shop.refund'),
  coord.step('ship',    'shop.ship')]) AS version;
\set ECHO none

\echo '=== This session starts one saga per order, then only waits.'
\echo
\set ECHO queries
SELECT coord.saga_start('order', '{"order_id": 1}', key => 'order-1') AS first \gset
SELECT coord.saga_start('order', '{"order_id": 2}', key => 'order-2') AS second \gset
SELECT coord.saga_wait(:first, '20 s') AS "order 1", coord.saga_wait(:second, '20 s') AS "order 2";
\set ECHO none

\echo '=== Order 1 has been shipped. Order 2 could not be: its payment was given back,'
\echo '=== then its kettles. What its third step had written itself (shipped, a line in'
\echo '=== the journal) is gone with that step''s own transaction.'
\echo
SELECT * FROM shop.stock;
SELECT * FROM shop.orders ORDER BY id;
SELECT * FROM shop.payments;

\echo '=== What coord knows about it.'
\echo
SELECT id, name, key, status, direction, cause, error FROM coord.sagas ORDER BY id;
SELECT saga_id, step, phase, status, attempt, result, error FROM coord.saga_steps ORDER BY saga_id, ordinal;
SELECT * FROM coord.saga_timeline(:second);
SELECT count(*) AS stuck FROM coord.stuck;

\echo '=== Who ran the steps: a background worker, not this session, with the rights of shop.'
\echo
SELECT pg_backend_pid() AS "pid of this session";
SELECT saga_id, function, pid, backend_type, role FROM shop.journal ORDER BY n;

\echo '=== The checks.'
\echo
CREATE TEMP VIEW checks AS
SELECT 'order 1 completed' AS what, coord.saga_status(:first) = 'completed' AS ok
UNION ALL
SELECT 'order 2 compensated', coord.saga_status(:second) = 'compensated'
UNION ALL
SELECT 'only the kettles of order 1 are gone', (SELECT on_hand = 8 FROM shop.stock)
UNION ALL
SELECT 'order 1 has been paid, once', (SELECT sum(amount) = 59.80 AND count(*) = 1 FROM shop.payments WHERE order_id = 1)
UNION ALL
SELECT 'order 2 has been paid back, once', (SELECT sum(amount) = 0 AND count(*) = 2 FROM shop.payments WHERE order_id = 2)
UNION ALL
SELECT 'only order 1 is marked as shipped', (SELECT array_agg(id) = '{1}' FROM shop.orders WHERE shipped)
UNION ALL
SELECT 'each step ran once, in order', (SELECT array_agg(function ORDER BY n)
    FILTER (WHERE saga_id = :first) = '{reserve_stock,charge,ship}'
  AND array_agg(function ORDER BY n)
    FILTER (WHERE saga_id = :second) = '{reserve_stock,charge,refund,release_stock}' FROM shop.journal)
UNION ALL
SELECT 'all of them in a coord worker, as shop', (SELECT bool_and(backend_type IS NOT DISTINCT FROM 'coord worker'
  AND pid <> pg_backend_pid() AND role = 'shop') FROM shop.journal);

SELECT what, CASE WHEN ok THEN 'yes' ELSE 'NO' END AS ok FROM checks;
DO $$ BEGIN
  IF EXISTS (SELECT FROM checks WHERE ok IS NOT TRUE) THEN
    RAISE EXCEPTION 'a check failed';
  END IF;
END $$;
