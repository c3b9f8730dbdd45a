-- What the payment workers work on: a saga that has its payments made outside, and
-- a payment provider, which stands for somebody else's web service.
--
--   createdb shop && psql -d shop -f examples/payment.sql       (as superuser)

CREATE EXTENSION IF NOT EXISTS coord;
CREATE ROLE shop;
CREATE ROLE payment_worker LOGIN;
GRANT coord_user TO shop, payment_worker;
CREATE SCHEMA shop AUTHORIZATION shop;
SET ROLE shop;

CREATE FUNCTION shop.ship(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF context->'input'->>'address' IS NULL THEN
    RAISE EXCEPTION 'no address';
  END IF;
END $$;

SELECT coord.saga_define('order', ARRAY[
  coord.step('charge', queue => 'payments', compensation => 'refund', max_attempts => 10),
  coord.step('ship', 'shop.ship', pivot => true)]);

-- A worker needs no more than the queue: not the role whose sagas they are.
SELECT coord.grant_use('queue', 'payments', 'payment_worker');

-- The shop's own record of what was done, which worker.py keeps.
CREATE TABLE shop.booking (key text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now());
GRANT USAGE ON SCHEMA shop TO payment_worker;
GRANT INSERT ON shop.booking TO payment_worker;
RESET ROLE;

-- The provider.  Under one key it does a thing once, however often it is asked.
CREATE DATABASE provider;
\connect provider
CREATE TABLE payment (
  idempotency_key text PRIMARY KEY,
  amount numeric NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT, INSERT ON payment TO payment_worker;

CREATE PROCEDURE charge_card(key text, amount numeric) LANGUAGE plpgsql AS $$
BEGIN
  IF amount > 1000 THEN
    RAISE EXCEPTION 'card declined';
  END IF;
  INSERT INTO payment VALUES (key, amount) ON CONFLICT DO NOTHING;
END $$;

-- What was not charged is charged with nothing, so that a charge that comes too late,
-- from a worker that was away for long, finds its key used.
CREATE PROCEDURE refund_card(key text, charge_key text) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO payment VALUES (charge_key, 0) ON CONFLICT DO NOTHING;
  INSERT INTO payment SELECT key, -amount FROM payment WHERE idempotency_key = charge_key
    ON CONFLICT DO NOTHING;
END $$;
