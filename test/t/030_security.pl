# Hostile steps in background workers: whatever they leave behind is run as
# nobody who could do anything with it, and no other role's step meets it.  In
# sessions: test/sql/security_steps.sql.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# One worker, which stays: all steps meet in the same process.
my $node = new_cluster('security',
  'coord.max_workers' => 1, 'coord.worker_idle_timeout' => '1h');
$node->safe_psql('postgres', 'CREATE EXTENSION coord');
$node->psql('postgres', slurp_file('test/attacks.sql'), on_error_stop => 1, on_error_die => 1);
my $root = session($node, 'postgres');

my $mallory = session($node, 'postgres');
$mallory->do('SET ROLE sec_mallory');
my $alice = session($node, 'postgres');
$alice->do('SET ROLE sec_alice');

sub start
{
  my ($kind, @statements) = @_;
  return one($mallory, q{SELECT coord.saga_start('mallory: ' || ?, jsonb_build_object('sql', ?::text[]))},
    $kind, \@statements);
}

sub finish
{
  my ($id) = @_;
  return one($root, q{SELECT coord.saga_wait(?, '30 s')}, $id);
}

# What each statement of den.attempt came to.
sub outcome
{
  my @statements = @_;
  my $id = start('attempt', @statements);
  finish($id);
  return $root->selectcol_arrayref(
    q{SELECT jsonb_array_elements_text(output -> 'attempt') FROM coord.sagas WHERE id = ?}, undef, $id);
}

# What alice's step, the next in the same worker, finds.
sub alice_sees
{
  my $id = one($alice, q{SELECT coord.saga_start('alice: look')});
  is(finish($id), 'completed', 'the other role is served');
  return one($root, q{SELECT (output -> 'look')::text FROM coord.sagas WHERE id = ?}, $id);
}

sub loot
{
  my $rows = $root->selectcol_arrayref(
    q{SELECT label || ' as ' || who || ' ' || count(*) FROM den.loot GROUP BY label, who ORDER BY label, who});
  $root->do('TRUNCATE den.loot');
  return $rows;
}

my $clean = alice_sees();
is($clean, one($root, q{SELECT '{"who": "sec_alice", "locks": 0, "cursors": [], "setting": "",
    "prepared": [], "read_only": "off", "temporary": 0, "search_path": "home, pg_temp", "row_security": "on"}'::jsonb::text}),
  'what a role finds in a worker that is new');
my $pid = one($root, q{SELECT pid } . WORKERS, 'postgres');

my $launcher = one($root, q{SELECT pid FROM coord.workers WHERE backend_type = 'coord launcher'});

# The session behind the effective user.
is(one($root, q{SELECT count(*) FROM pg_stat_activity WHERE pid = ? AND usename = 'coord_worker'}, $pid), 1,
  'a worker is logged in as coord_worker');
is(one($root, q{SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
    OR EXISTS (SELECT FROM pg_auth_members WHERE member = r.oid) FROM pg_roles r WHERE rolname = 'coord_worker'}), 0,
  'which may do nothing');

# Becoming somebody else.
is_deeply(outcome('SELECT * FROM vault.secret', 'RESET ROLE', 'SET ROLE NONE', 'SET ROLE sec_boss',
    'SET LOCAL ROLE coord_worker', 'SET SESSION AUTHORIZATION sec_boss', 'SET SESSION AUTHORIZATION DEFAULT',
    'RESET SESSION AUTHORIZATION', q{SELECT set_config('role', 'none', false)},
    q{SELECT set_config('session_authorization', 'coord_worker', false)},
    'SELECT den.as_boss()', 'SELECT den.as_session()', 'RESET ALL', 'SELECT * FROM vault.secret'),
  [ '42501 SELECT * FROM vault.secret', '42501 RESET ROLE', '42501 SET ROLE NONE', '42501 SET ROLE sec_boss',
    '42501 SET LOCAL ROLE coord_worker', '42501 SET SESSION AUTHORIZATION sec_boss',
    '42501 SET SESSION AUTHORIZATION DEFAULT', '42501 RESET SESSION AUTHORIZATION',
    q{42501 SELECT set_config('role', 'none', false)},
    q{42501 SELECT set_config('session_authorization', 'coord_worker', false)},
    '42501 SELECT den.as_boss()', '42501 SELECT den.as_session()', 'done RESET ALL',
    '42501 SELECT * FROM vault.secret', 'sec_mallory' ],
  'a step cannot become another role');

# Transactions, the engine, other processes.
is_deeply(outcome('COMMIT', 'ROLLBACK', 'SAVEPOINT s', 'DO $d$ BEGIN COMMIT; END $d$',
    'DO $d$ BEGIN ROLLBACK; END $d$', 'CALL coord.run_pending()',
    'DO $d$ DECLARE n int; BEGIN CALL coord.run_pending(NULL, n); END $d$',
    'DISCARD ALL', "SELECT pg_terminate_backend($pid)", "SELECT pg_cancel_backend($pid)",
    "SELECT pg_terminate_backend($launcher)",
    q{ALTER SYSTEM SET coord.enabled = off}, q{SET coord.test_now = ''}, 'SELECT coord.pause()',
    'SELECT coord_internal.ring()'),
  [ '0A000 COMMIT', '0A000 ROLLBACK', '0A000 SAVEPOINT s', '2D000 DO $d$ BEGIN COMMIT; END $d$',
    '2D000 DO $d$ BEGIN ROLLBACK; END $d$', '25001 CALL coord.run_pending()',
    '25001 DO $d$ DECLARE n int; BEGIN CALL coord.run_pending(NULL, n); END $d$',
    '25001 DISCARD ALL', "42501 SELECT pg_terminate_backend($pid)", "42501 SELECT pg_cancel_backend($pid)",
    "42501 SELECT pg_terminate_backend($launcher)",
    q{25001 ALTER SYSTEM SET coord.enabled = off}, q{42501 SET coord.test_now = ''}, '42501 SELECT coord.pause()',
    '42501 SELECT coord_internal.ring()', 'sec_mallory' ],
  'a step cannot end the transaction, nor touch the engine');

# What is left for the commit runs as her, before the commit.
is(finish(start('execute', 'INSERT INTO den.bait VALUES (1)')), 'completed', 'a deferred trigger');
is(finish(start('execute', 'INSERT INTO den.bait2 VALUES (1)')), 'completed', 'one that defers another');
is(finish(start('execute', 'INSERT INTO den.bait3 VALUES (1)')), 'completed', 'one that opens a cursor');
is_deeply(loot(),
  [ 'deferred as sec_mallory 2', 'deferred cursor as sec_mallory 1', 'deferred twice as sec_mallory 1' ],
  'deferred triggers ran as the owner, and no cursor was read at commit');
is(finish(start('execute', q{DECLARE c CURSOR WITH HOLD FOR SELECT den.trap('cursor')})), 'completed',
  'a cursor that would outlive the step');
is(finish(start('execute', q{DECLARE c CURSOR FOR SELECT den.trap('cursor')})), 'completed',
  'a cursor that is left open');
is_deeply(loot(), [], 'no cursor of a step is read');
is(alice_sees(), $clean, 'and none of it is there for the next role');

# What lies in the session.  Once after a step that succeeds, once after one
# that fails in a subtransaction, and once after one that fails without.
my @leave = (
  'CREATE TEMP TABLE secret (x int) ON COMMIT DELETE ROWS',
  q{CREATE INDEX ON secret (den.trap_immutable(x))},
  'INSERT INTO secret VALUES (1)',
  q{CREATE FUNCTION pg_temp.look_around(doc jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT doc'},
  'CREATE DOMAIN pg_temp.text AS int',
  'CREATE TEMP VIEW pg_class AS SELECT 1 AS relnamespace',
  q{PREPARE left_behind AS SELECT den.trap('prepared')},
  'SELECT pg_advisory_lock(11)', 'SELECT pg_advisory_lock_shared(12)',
  q{SELECT set_config('den.setting', 'left', false)},
  'SET search_path = den, pg_temp', 'SET row_security = off', 'SET statement_timeout = 1',
  'SET transaction_read_only = on');
$mallory->do(q{CREATE FUNCTION den.trap_immutable(x int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
  $$ BEGIN PERFORM den.trap('index'); RETURN x; END $$});
is(finish(start('execute', @leave)), 'completed', 'a step that leaves everything it can');
is(alice_sees(), $clean, 'none of it is there for the next role');
is(finish(start('execute', @leave, 'SELECT 1/0')), 'failed', 'a step that leaves everything and fails');
is(alice_sees(), $clean, 'none of it is there for the next role either');

# The step has now been distrusted; another one fails bare, after it was seen
# to be harmless.
$mallory->do(q{CREATE FUNCTION den.execute_again(doc jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT den.execute(doc)'});
$mallory->do(q{SELECT coord.saga_define('mallory: again', ARRAY[coord.step('execute', 'den.execute_again', max_attempts => 1)])});
is(finish(start('again', 'SELECT 1')), 'completed', 'a harmless call');
is(finish(start('again', 'SELECT 1')), 'completed', 'a second');
is(finish(start('again', @leave, 'SELECT 1/0')), 'failed', 'one that leaves everything and fails');
is(alice_sees(), $clean, 'none of it is there for the next role after a turn that was rolled back');
is_deeply([ grep { !/as sec_mallory/ } @{ loot() } ], [], 'and nothing ran as anybody else');

is(one($root, q{SELECT count(*) FROM pg_locks WHERE pid = ? AND locktype = 'advisory'}, $pid), 0,
  'the worker holds no advisory lock');

# Upon itself: its saga is dealt with when the step has ended.
$mallory->do(q{CREATE FUNCTION den.upon(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
  DECLARE status text;
  BEGIN
    PERFORM den.trap('step ' || (doc ->> 'step'));
    EXECUTE format('SELECT coord.saga_%s(%s)', doc #>> '{input,verb}',
                   coalesce(doc #>> '{input,saga}', doc ->> 'saga_id')) INTO status;
    RETURN to_jsonb(status);
  END $$});
$mallory->do(q{CREATE FUNCTION den.note(doc jsonb) RETURNS void LANGUAGE sql AS $$ SELECT den.trap('step ' || (doc ->> 'step')) $$});
$mallory->do(q{CREATE FUNCTION den.undo(doc jsonb) RETURNS void LANGUAGE sql AS $$ SELECT den.trap('undo ' || (doc ->> 'step')) $$});
$mallory->do(q{SELECT coord.saga_define('mallory: upon', ARRAY[
  coord.step('one', 'den.upon', 'den.undo'), coord.step('two', 'den.note')])});
foreach ([ cancel => 'compensated', 'step one,undo one' ], [ abandon => 'failed', 'step one' ])
{
  my ($verb, $status, $effects) = @$_;
  my $id = one($mallory, q{SELECT coord.saga_start('mallory: upon', jsonb_build_object('verb', ?::text))}, $verb);
  eventually("a step that does $verb to its own saga", $root, $status, q{SELECT coord.saga_status(?)}, $id);
  is(one($root, q{SELECT string_agg(label, ',' ORDER BY ctid) FROM den.loot}), $effects, "what ran: $effects");
  loot();
}

# Upon a saga that the worker has in hand in the same transaction.
$mallory->do(q{SELECT coord.saga_start('mallory: upon', '{"verb": "status"}') FROM generate_series(1, 20)});
eventually('twenty sagas, so that the worker takes batches', $root, 0,
  q{SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL});
loot();
$mallory->begin_work;
my @pairs = map {
  my $victim = one($mallory, q{SELECT coord.saga_start('mallory: upon', '{"verb": "status"}', priority => -1)});
  my $killer = one($mallory, q{SELECT coord.saga_start('mallory: upon', jsonb_build_object('verb', 'cancel', 'saga', ?::bigint))}, $victim);
  [ $victim, $killer ]
} 1 .. 8;
$mallory->commit;
eventually('sagas that cancel others of the same batch all end', $root, 0,
  q{SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL});
is(one($root, q{SELECT string_agg(DISTINCT status, ',') FROM coord.sagas WHERE id = ANY (?)}, [ map { $_->[1] } @pairs ]),
  'completed', 'those that cancel are completed');
is(one($root, q{SELECT count(*) FROM coord.sagas WHERE id = ANY (?) AND status NOT IN ('failed', 'compensated', 'completed')},
    [ map { $_->[0] } @pairs ]), 0, 'those that were cancelled have ended');
is(one($root, q{SELECT count(*) FROM (SELECT saga_id FROM coord.saga_log WHERE event = 'cancel'
      GROUP BY saga_id HAVING count(*) > 1) l}), 0, 'none was cancelled twice');

is(one($root, q{SELECT string_agg(DISTINCT pid::text, ',') } . WORKERS, 'postgres'), $pid, 'all of it in one and the same worker');
my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC|TRAP|that was claimed has changed|terminated by signal/, 'nothing bad in the server log');

$node->stop;
done_testing();
