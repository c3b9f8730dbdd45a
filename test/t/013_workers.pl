# Background workers: when they come and go, how they are woken, what operators
# can do while a step runs, and what happens when there is no room for them.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Longer than anything here may take that needs no timer, shorter than the
# safety scan.
my $promptly = 5;

my $node = new_cluster('workers', 'coord.worker_idle_timeout' => '100ms',
  max_prepared_transactions => 10);
my $admin = session($node, 'postgres');
$admin->do('CREATE DATABASE app');
my $dbh = session($node, 'app');
install_sagas($dbh);

# How many workers are in the database; how many of them with a wait event.
sub workers_are
{
  my ($count, $wait_event) = @_;
  return wait_until($admin, $count, 'SELECT count(*) ' . WORKERS . ($wait_event ? " AND wait_event = '$wait_event'" : ''),
    'app');
}

sub set
{
  my ($name, $value) = @_;
  $admin->do("ALTER SYSTEM SET $name = '$value'");
  $node->reload;
  my $probe = session($node, 'postgres');
  wait_until($probe, $value, 'SELECT current_setting(?)', $name);
  $probe->disconnect;
  return;
}

sub status_becomes
{
  my ($name, $id, $status) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  return eventually($name, $dbh, $status, q{SELECT coord.saga_status(?)}, $id);
}

# What a saga left behind, in order.
sub effects
{
  my ($id) = @_;
  return one($dbh, q{SELECT coalesce(string_agg(CASE phase WHEN 'compensation' THEN 'undo ' ELSE '' END || step,
    ',' ORDER BY id), '') FROM effect WHERE saga = ?}, $id);
}

sub in_the_middle
{
  my ($saga) = @_;
  my $id = one($dbh, q{SELECT coord.saga_start(?, '{"gate": 1}')}, $saga);
  workers_are(1, $saga eq 'gated' ? 'advisory' : 'PgSleep');
  return $id;
}

### Coming and going

is(workers_are(0), 0, 'a database with nothing to do has no worker');
my $id = one($dbh, q{SELECT coord.saga_start('quick')});
my $waited;
my $time = seconds { $waited = one($dbh, q{SELECT coord.saga_wait(?, '15 s')}, $id) };
is($waited, 'completed', 'a start wakes a worker up, and saga_wait() hears of the end');
cmp_ok($time, '<', $promptly, 'promptly');
is(workers_are(0), 0, 'then it goes home');

# saga_wait() that begins before the end.
$dbh->do('SELECT pg_advisory_lock(1)');
$id = in_the_middle('gated');
my $waiter = session($node, 'app');
$waiter->do("SELECT coord.saga_wait($id, '30 s')", { pg_async => DBD::Pg::PG_ASYNC() });
wait_until($admin, 1, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ 'saga_wait' AND backend_type = 'client backend'
  AND wait_event_type IN ('Extension', 'IPC', 'Activity')});
$time = seconds { $dbh->do('SELECT pg_advisory_unlock(1)'); $waiter->pg_result };
cmp_ok($time, '<', $promptly, 'saga_wait() that sleeps already returns promptly');
is(one($dbh, q{SELECT coord.saga_status(?)}, $id), 'completed', 'the saga is completed');
$waiter->disconnect;

# A timer fires after the worker went home.
workers_are(0);
$id = one($dbh, q{SELECT coord.saga_start('quick', start_at => now() + '2 s')});
is(one($dbh, q{SELECT coord.saga_status(?)}, $id), 'running', 'a delayed start waits');
is(effects($id), '', 'and does nothing');
is(workers_are(0), 0, 'without a worker');
status_becomes('a delayed start is done when its time comes', $id, 'completed');
is(one($dbh, q{SELECT min(started_at) >= min(created_at) + '1.9 s' FROM coord.sagas WHERE id = ?}, $id), 1,
  'and not before');

# A far timer and then a nearer one.
workers_are(0);
one($dbh, q{SELECT coord.saga_start('quick', start_at => now() + '1 day')});
$id = one($dbh, q{SELECT coord.saga_start('quick', start_at => now() + '1 s')});
status_becomes('a nearer timer comes first', $id, 'completed');

# A retry.
$id = one($dbh, q{SELECT coord.saga_start('failing', '{"sqlstate": "40001"}')});
status_becomes('retries are made by the timer', $id, 'compensated');
is(one($dbh, q{SELECT attempt FROM coord.saga_steps WHERE saga_id = ? AND step = 'fail'}, $id), 2, 'both attempts');
is(effects($id), 'before,undo before', 'and the first step undone');

### COMMIT PREPARED, rollback

workers_are(0);
$dbh->begin_work;
$id = one($dbh, q{SELECT coord.saga_start('quick')});
$dbh->do(q{PREPARE TRANSACTION 'start'});
$dbh->commit;
is(one($dbh, q{SELECT count(*) FROM coord.sagas WHERE id = ?}, $id), 0, 'a prepared start is not there yet');
my $other = session($node, 'app');
$time = seconds { $other->do(q{COMMIT PREPARED 'start'}); wait_until($dbh, 'completed', q{SELECT coord.saga_status(?)}, $id) };
is(one($dbh, q{SELECT coord.saga_status(?)}, $id), 'completed', 'a start is done after COMMIT PREPARED');
cmp_ok($time, '<', $promptly, 'promptly');
$other->disconnect;

$dbh->begin_work;
$id = one($dbh, q{SELECT coord.saga_start('quick')});
$dbh->rollback;
like(error_of($dbh, "SELECT coord.saga_status($id)"), qr/^42704/, 'a start that is rolled back never was');
$dbh->begin_work;
my $kept = one($dbh, q{SELECT coord.saga_start('quick')});
$dbh->do('SAVEPOINT s');
$id = one($dbh, q{SELECT coord.saga_start('quick')});
$dbh->do('ROLLBACK TO s');
$dbh->commit;
status_becomes('what was started before a savepoint is done', $kept, 'completed');
is(effects($id), '', 'what was rolled back to it is not');

### While a step runs

$id = in_the_middle('napping');
is(one($dbh, q{SELECT string_agg(concat_ws(' ', state, saga_id, step, phase, since <= clock_timestamp()), ',')
    FROM coord.workers WHERE backend_type = 'coord worker'}), "running $id nap action t", 'coord.workers shows the step');
is(one($dbh, q{SELECT count(*) FROM coord.workers WHERE backend_type = 'coord launcher'}), 1, 'and the launcher');
is(one($dbh, q{SELECT query } . WORKERS, 'app'), "coord: saga $id step nap", 'pg_stat_activity shows it');
is(one($dbh, q{SELECT usename } . WORKERS, 'app'), 'coord_worker', 'the session is that of coord_worker');
foreach my $verb (
  "saga_pause($id, 'why')", "saga_resume($id)", "saga_retry($id)", "saga_patch($id, '{\"patched\": true}')",
  "saga_skip($id, 'nap')", "saga_cancel($id, 'enough')")
{
  my $answer;
  my $time = seconds { $answer = one($dbh, "SELECT coord.$verb") };
  is($answer, 'running', "$verb of a saga in an hour-long step answers");
  cmp_ok($time, '<', $promptly, "$verb does not wait");
}
my $pid = one($admin, q{SELECT pid } . WORKERS, 'app');
$time = seconds {
  my $status = one($dbh, q{SELECT coord.saga_cancel(?, 'now', interrupt => true)}, $id);
  like($status, qr/^(running|compensating|compensated)$/, 'saga_cancel(interrupt => true) answers');
};
cmp_ok($time, '<', $promptly, 'at once');
status_becomes('the saga ends as what was asked for first says', $id, 'compensated');
is(effects($id), 'before,undo before', 'what was done is undone, once');
is(one($dbh, q{SELECT string_agg(event, ',' ORDER BY id) FROM coord.saga_log WHERE saga_id = ? AND event ~ 'pause|cancel|patch'
    AND role IS NOT NULL}, $id), 'pause,patch,cancel', 'the log has what operators did');
is(one($dbh, q{SELECT cause FROM coord.sagas WHERE id = ?}, $id), 'cancelled', 'and the saga why it ended');

# Alone: interrupt returns at once.
$id = in_the_middle('napping');
$time = seconds { one($dbh, q{SELECT coord.saga_cancel(?, interrupt => true)}, $id) };
cmp_ok($time, '<', $promptly, 'saga_cancel(interrupt => true) returns at once');
$time = seconds { status_becomes('an interrupted saga is compensated', $id, 'compensated') };
cmp_ok($time, '<', $promptly, 'at once as well');
is(effects($id), 'before,undo before', 'what was done is undone');
like(one($dbh, q{SELECT string_agg(step || ' ' || status, ',' ORDER BY ordinal) FROM coord.saga_steps WHERE saga_id = ?}, $id),
  qr/^before compensated,nap (pending|ready)$/, 'the interrupted step is not done');

# A worker that is terminated in the middle of a step.
$dbh->do('SELECT pg_advisory_lock(1)');
$id = in_the_middle('gated');
$pid = one($admin, q{SELECT pid } . WORKERS, 'app');
one($admin, 'SELECT pg_terminate_backend(?)', $pid);
eventually('another worker comes for one that was terminated', $admin, 1,
  q{SELECT count(*) } . WORKERS . qq{ AND wait_event = 'advisory' AND pid <> $pid}, 'app');
$dbh->do('SELECT pg_advisory_unlock(1)');
status_becomes('it does the saga', $id, 'completed');
is(effects($id), 'before,gate,after', 'each step has its effect once');
is(one($dbh, q{SELECT string_agg(attempt::text, ',' ORDER BY ordinal) FROM coord.saga_steps WHERE saga_id = ?}, $id),
  '1,1,1', 'and no attempt is counted for it');

# The same by pg_cancel_backend: an error in the step, which 57 retries.
$dbh->do('SELECT pg_advisory_lock(1)');
$id = in_the_middle('gated');
one($admin, q{SELECT pg_cancel_backend(pid) } . WORKERS, 'app');
$dbh->do('SELECT pg_advisory_unlock(1)');
status_becomes('a step that was cancelled by pg_cancel_backend() is tried again', $id, 'completed');
is(effects($id), 'before,gate,after', 'each step has its effect once again');

# The launcher dies: another one comes, and what is due is done.
$pid = one($admin, q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'coord launcher'});
one($admin, 'SELECT pg_terminate_backend(?)', $pid);
$id = one($dbh, q{SELECT coord.saga_start('quick')});
status_becomes('work is done after the launcher was terminated', $id, 'completed');

### Switches

set('coord.enabled', 'off');
is(workers_are(0), 0, 'coord.enabled = off sends workers home');
$id = one($dbh, q{SELECT coord.saga_start('quick')});
is(one($dbh, q{SELECT repair FROM coord.stuck WHERE kind = 'engine'}), 'ALTER SYSTEM SET coord.enabled = on',
  'coord.stuck says that it is off');
is(one($dbh, 'CALL coord.run_pending()'), 0, 'run_pending does nothing either');
is(effects($id), '', 'nothing runs');
set('coord.enabled', 'on');
status_becomes('coord.enabled = on: what was started meanwhile is done', $id, 'completed');
is(one($dbh, q{SELECT count(*) FROM coord.stuck}), 0, 'nothing is stuck');

one($dbh, q{SELECT coord.pause('maintenance')});
$id = one($dbh, q{SELECT coord.saga_start('quick')});
is(one($dbh, q{SELECT waits_for FROM coord.stuck WHERE kind = 'engine'}),
  'an operator: ' . one($dbh, 'SELECT current_user') . ' paused the engine: maintenance', 'coord.stuck says who paused and why');
is(workers_are(0), 0, 'no worker stays while it is paused');
is(effects($id), '', 'nothing runs while it is paused');
one($dbh, q{SELECT coord.resume()});
status_becomes('coord.resume(): what was started meanwhile is done', $id, 'completed');

# A pause that is rolled back is none.
$dbh->begin_work;
one($dbh, q{SELECT coord.pause()});
$dbh->rollback;
$id = one($dbh, q{SELECT coord.saga_start('quick')});
status_becomes('a pause that was rolled back is none', $id, 'completed');

# Pause in the middle: the step ends, nothing new begins.
$dbh->do('SELECT pg_advisory_lock(1)');
$id = in_the_middle('gated');
is(one($dbh, q{CALL coord.drain('100 ms')}), 0, 'coord.drain() gives up while a step runs');
my $drainer = session($node, 'app');
$drainer->do(q{CALL coord.drain('1 min')}, { pg_async => DBD::Pg::PG_ASYNC() });
wait_until($admin, 1, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ 'CALL coord.drain' AND state = 'active'
  AND backend_type = 'client backend'});
ok(!$drainer->pg_ready, 'coord.drain() waits for a step that runs');
$dbh->do('SELECT pg_advisory_unlock(1)');
ok(eval { $drainer->pg_result; 1 }, 'coord.drain() returns when the step has ended');
like(effects($id), qr/^before,gate(,after)?$/, 'the step that ran is done');
my $done = effects($id);
is(workers_are(0), 0, 'then no worker is there');
is(effects($id), $done, 'and nothing more is done');
is(one($dbh, q{CALL coord.drain('10 s')}), 1, 'coord.drain() of what is drained');
one($dbh, q{SELECT coord.resume()});
status_becomes('after coord.resume() it goes on', $id, 'completed');
is(effects($id), 'before,gate,after', 'with the rest, once');
$drainer->disconnect;

### No room for workers

$node->append_conf('postgresql.conf', 'max_worker_processes = 2');
$_->disconnect foreach $dbh, $admin;
$node->restart;
$admin = session($node, 'postgres');
$dbh = session($node, 'app');
$admin->do('CREATE DATABASE hog');
my $hog = session($node, 'hog');
install_sagas($hog);
# Two slots: the launcher's, and another that hog's worker takes (the logical
# replication launcher is switched off).
$admin->do('ALTER SYSTEM SET max_logical_replication_workers = 0');
$_->disconnect foreach $dbh, $admin, $hog;
$node->restart;
$admin = session($node, 'postgres');
$dbh = session($node, 'app');
$hog = session($node, 'hog');
one($hog, q{SELECT coord.saga_start('napping')});
wait_until($admin, 1, q{SELECT count(*) } . WORKERS . q{ AND wait_event = 'PgSleep'}, 'hog');
my $position = log_size($node);
$id = one($dbh, q{SELECT coord.saga_start('quick')});
ok(wait_for_log_line($node, qr/LOG: .*coord: no background worker could be started.*\n.*HINT: .*max_worker_processes/, $position),
  'no slot: the log says so');
is(one($dbh, q{SELECT coord.saga_status(?)}, $id), 'running', 'the saga waits');
# What says it in the database, by a clock that is ahead.
$dbh->do(q{SET coord.test_now = '2100-01-01'});
is(one($dbh, q{SELECT waits_for FROM coord.stuck WHERE kind = 'worker'}), 'a worker: none runs here, and due sagas: 2',
  'coord.stuck says that a worker is missing');
is(one($dbh, q{SELECT repair FROM coord.stuck WHERE kind = 'worker'}), 'SELECT coord.start_worker()', 'and what to do');
like(error_of($dbh, q{SELECT coord.start_worker()}), qr/^53\d\d\d could not start a background worker/,
  'which fails clearly while there is no slot');
$dbh->do(q{RESET coord.test_now});
one($hog, q{SELECT coord.saga_cancel(max(id), interrupt => true) FROM coord.sagas});
status_becomes('work goes on when a slot is free', $id, 'completed');
my $count = () = log_since($node, $position) =~ /no background worker could be started/g;
is($count, 1, 'the log said it once');

$_->disconnect foreach $dbh, $admin, $hog;
$node->stop;
done_testing();
