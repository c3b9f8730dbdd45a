-- The subject: step functions and definitions.  Run in a copy of the floor's
-- database.

GRANT coord_user TO bench;
GRANT CREATE ON SCHEMA public TO bench;

-- Returns the time when no saga is unfinished any more, and how many transactions
-- that took here.  Holds no snapshot meanwhile, and reads on from the oldest saga
-- that it saw last: what is before is finished, and may be many dead rows.
CREATE PROCEDURE bench_await(seconds int, INOUT finished_at numeric DEFAULT NULL, INOUT commits int DEFAULT 0)
LANGUAGE plpgsql AS $$
DECLARE
  give_up timestamptz := clock_timestamp() + seconds * interval '1 s';
  oldest bigint := 0;
BEGIN
  LOOP
    SELECT id INTO oldest FROM coord_internal.saga WHERE id >= oldest ORDER BY id LIMIT 1;
    EXIT WHEN oldest IS NULL OR clock_timestamp() > give_up;
    COMMIT;
    PERFORM pg_sleep(0.005);
    COMMIT;
    commits := commits + 2;
  END LOOP;
  PERFORM count(*) FROM biz;
  finished_at := extract(epoch FROM clock_timestamp());
  commits := commits + 1;
END $$;

SET ROLE bench;

CREATE FUNCTION step1(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.biz (saga, step) VALUES ((context->>'saga_id')::bigint, 1);
  RETURN '{"done": 1}';
END $$;
CREATE FUNCTION step2(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.biz (saga, step) VALUES ((context->>'saga_id')::bigint, 2);
  RETURN '{"done": 2}';
END $$;
CREATE FUNCTION step3(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.biz (saga, step) VALUES ((context->>'saga_id')::bigint, 3);
  RETURN '{"done": 3}';
END $$;
CREATE FUNCTION step3_fails(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.biz (saga, step) VALUES ((context->>'saga_id')::bigint, 3);
  RAISE EXCEPTION 'no';
END $$;
CREATE FUNCTION undo1(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.biz (saga, step) VALUES ((context->>'saga_id')::bigint, -1);
  RETURN '{"undone": 1}';
END $$;
CREATE FUNCTION undo2(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.biz (saga, step) VALUES ((context->>'saga_id')::bigint, -2);
  RETURN '{"undone": 2}';
END $$;

SELECT coord.saga_define('bench', ARRAY[
  coord.step('one', 'step1'), coord.step('two', 'step2'), coord.step('three', 'step3')]);
SELECT coord.saga_define('failing', ARRAY[
  coord.step('one', 'step1', compensation => 'undo1'),
  coord.step('two', 'step2', compensation => 'undo2'),
  coord.step('three', 'step3_fails')]);
SELECT coord.saga_define('chain', (SELECT array_agg(coord.step('s' || i, 'step1') ORDER BY i)
  FROM generate_series(1, 10000) i));
SELECT coord.saga_define('fanout',
  coord.step('first', 'step1', after => '{}')
  || (SELECT array_agg(coord.step('s' || i, 'step1', after => '{first}') ORDER BY i) FROM generate_series(1, 10000) i)
  || coord.step('last', 'step1', after => (SELECT array_agg('s' || i) FROM generate_series(1, 10000) i)));
-- Each step but those of the first layer after three of the layer before.
SELECT coord.saga_define('dag', (SELECT array_agg(coord.step('s' || layer || '_' || i, 'step1',
    after => CASE WHEN layer = 0 THEN '{}' ELSE ARRAY[
      's' || layer - 1 || '_' || i,
      's' || layer - 1 || '_' || (i + 1) % 500,
      's' || layer - 1 || '_' || (i + 71) % 500] END) ORDER BY layer, i)
  FROM generate_series(0, 19) layer, generate_series(0, 499) i));

-- Items and tasks of queues.
CREATE FUNCTION sleeps(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_sleep(0.005);
  RETURN NULL;
END $$;
SELECT coord.saga_define('items', ARRAY[coord.step('first', 'step1'),
  coord.step('each', 'step1', for_each => '$.input[*]'), coord.step('last', 'step1')]);
SELECT coord.saga_define('sleepy', ARRAY[coord.step('each', 'sleeps', for_each => '$.input[*]')]);
SELECT coord.saga_define('queued', ARRAY[coord.step('each', queue => 'bench', for_each => '$.input[*]')]);
SELECT coord.saga_define('queued1', ARRAY[coord.step('one', queue => 'bench')]);

-- Have exactly n sagas done each of their steps exactly once?
CREATE FUNCTION bench_right(definition text, n bigint) RETURNS boolean LANGUAGE sql AS $$
  SELECT count(*) = n * cardinality(steps) AND count(DISTINCT (saga, step)) = count(*)
    AND count(DISTINCT saga) = n AND bool_and(step = ANY (steps))
  FROM biz, (SELECT CASE definition WHEN 'failing' THEN '{1,2,-2,-1}'::int[] ELSE '{1,2,3}' END AS steps) wanted
  GROUP BY steps
$$;

RESET ROLE;
CHECKPOINT;
