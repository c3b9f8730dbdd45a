-- CALL coord.await(): waits without a snapshot.
\set name regress_saga_await
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
SELECT coord.saga_define('quick', ARRAY[coord.step('a', 'act')]);
SELECT coord.saga_start('quick') AS id \gset

-- not finished: false when the time is over
CALL coord.await('saga', :'id', '0');
CALL coord.run_pending() \gset
-- finished: true at once, however long it may wait
CALL coord.await('saga', :'id', '1 hour');
SELECT coord.saga_start('quick') AS id \gset
SELECT coord.saga_pause(:id);
CALL coord.await('saga', :'id', NULL);

-- in a function
SELECT try($$CALL coord.await('saga', '1')$$);
\set VERBOSITY sqlstate
CALL coord.await('saga', '0');
CALL coord.await('saga', 'x');
CALL coord.await('queue', 'x');
CALL coord.await('nothing', 'x');
CALL coord.await(NULL, '1');
CALL coord.await('saga', NULL);
CALL coord.await('saga', :'id', '-1 s');
BEGIN;
CALL coord.await('saga', :'id');
ROLLBACK;
SELECT coord.saga_abandon(:id);
\set include :abs_srcdir/include/saga_end.psql
\i :include
