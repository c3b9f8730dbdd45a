# Parallel branches and items: really at the same time, in several workers and no more
# than allowed; and workers that are terminated or killed in the middle of them.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = new_cluster('parallel', 'coord.max_workers' => 3, 'coord.worker_idle_timeout' => '200ms', restart_after_crash => 'on',
  max_worker_processes => 20);
my $dbh = session($node, 'postgres');
install_sagas($dbh);
$dbh->do($_) foreach (
  # Who was at it, and when; in the order of the end.
  q{CREATE TABLE ran (id bigint GENERATED ALWAYS AS IDENTITY, saga bigint, step text, item int, attempt int, pid int,
      began timestamptz, ended timestamptz)},
  q{CREATE FUNCTION ran(doc jsonb, began timestamptz) RETURNS jsonb LANGUAGE sql AS
    $$ INSERT INTO public.ran (saga, step, item, attempt, pid, began, ended)
       VALUES ((doc ->> 'saga_id')::bigint, doc ->> 'step', (doc ->> 'index')::int, (doc ->> 'attempt')::int, pg_backend_pid(),
               began, clock_timestamp())
       RETURNING to_jsonb(coalesce(item::text, step)) $$},
  # Each waits until input.meet of them have come; a sequence is seen before COMMIT.
  # (Not a short step, which would share a transaction with others.)
  q{CREATE SEQUENCE arrivals},
  q{CREATE FUNCTION meet(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
    DECLARE
      began timestamptz := clock_timestamp();
    BEGIN
      PERFORM nextval('public.arrivals'), pg_sleep(0.02);
      WHILE (SELECT last_value FROM public.arrivals) < (doc #>> '{input,meet}')::int LOOP
        IF clock_timestamp() > began + '15 s' THEN
          RAISE 'nobody else has come';
        END IF;
        PERFORM pg_sleep(0.002);
      END LOOP;
      RETURN public.ran(doc, began);
    END $$},
  q{CREATE FUNCTION work(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
    DECLARE
      began timestamptz := clock_timestamp();
    BEGIN
      PERFORM pg_sleep(0.03);
      RETURN public.ran(doc, began);
    END $$},
  # Waits for a row that outlives the server; meanwhile a lock says which item it is.  Not
  # short for those who come when it is there, or a new worker would take two at a time.
  q{CREATE TABLE opened (gate text)},
  q{CREATE FUNCTION at_gate(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
    DECLARE
      began timestamptz := clock_timestamp();
    BEGIN
      PERFORM pg_advisory_xact_lock_shared((doc ->> 'saga_id')::int, coalesce((doc ->> 'index')::int, 100 + ascii(doc ->> 'step')));
      WHILE NOT EXISTS (SELECT FROM public.opened WHERE gate = doc #>> '{input,gate}') LOOP
        PERFORM pg_sleep(0.01);
      END LOOP;
      PERFORM pg_sleep(0.02);
      RETURN public.ran(doc, began);
    END $$},
  q{CREATE FUNCTION crash(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
    BEGIN
      IF doc -> 'item' = '"crash"' THEN
        EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -9 ' || pg_backend_pid());
      END IF;
      RETURN public.work(doc);
    END $$},
  q{SELECT coord.saga_define('branches', ARRAY[coord.step('a', 'public.meet', after => '{}'), coord.step('b', 'public.meet', after => '{}'),
      coord.step('c', 'public.meet', after => '{}'), coord.step('d', 'public.note', after => '{a,b,c}')])},
  q{SELECT coord.saga_define('met', ARRAY[coord.step('i', 'public.meet', for_each => '$.input.items[*]')])},
  q{SELECT coord.saga_define('two', ARRAY[coord.step('i', 'public.meet', for_each => '$.input.items[*]', max_parallel => 2)])},
  q{SELECT coord.saga_define('many', ARRAY[coord.step('i', 'public.work', for_each => '$.input.items[*]')])},
  q{SELECT coord.saga_define('gates', ARRAY[coord.step('i', 'public.at_gate', for_each => '$.input.items[*]', max_attempts => 5,
      retry_delay => '10 ms'), coord.step('n', 'public.note')])},
  q{SELECT coord.saga_define('gated branches', ARRAY[coord.step('a', 'public.at_gate', after => '{}', retry_delay => '10 ms'),
      coord.step('b', 'public.at_gate', after => '{}', retry_delay => '10 ms'), coord.step('n', 'public.note', after => '{a,b}')])},
  q{SELECT coord.saga_define('crashing', ARRAY[coord.step('i', 'public.crash', for_each => '$.input.items[*]', max_attempts => 2,
      retry_delay => '10 ms', max_failed_items => 1), coord.step('n', 'public.note')])},
  q{SELECT coord.saga_define('quick', ARRAY[coord.step('i', 'public.note', for_each => '$.input.items[*]')])});

sub start
{
  my ($name, $input) = @_;
  $dbh->do(q{ALTER SEQUENCE arrivals RESTART; SELECT nextval('arrivals'), setval('arrivals', 1, false)});
  return one($dbh, q{SELECT coord.saga_start(?, ?)}, $name, $input);
}

# For whoever has to find out why something does not go on.
sub tell_state
{
  diag $node->safe_psql('postgres', q{SELECT clock_timestamp(); SELECT id, name, status, wake_at FROM coord.sagas WHERE finished_at IS NULL;
    SELECT * FROM coord.tasks; SELECT * FROM coord.workers; SELECT * FROM coord_internal.saga_inbox;
    SELECT pid, state, wait_event, state_change, query FROM pg_stat_activity WHERE backend_type ~ 'coord'});
  return;
}

sub status_becomes
{
  my ($name, $id, $status) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  return eventually($name, $dbh, $status, q{SELECT coord.saga_status(?)}, $id) || tell_state();
}

# The most that ran at the same time, and in how many processes all did.
sub overlap
{
  my ($id, $step) = @_;
  return one($dbh, q{SELECT max(n) || ' in ' || count(DISTINCT pid) FROM (SELECT pid, (SELECT count(*) FROM ran o
      WHERE o.saga = r.saga AND o.step = coalesce($2, r.step) AND o.began <= r.began AND o.ended > r.began) AS n FROM ran r
      WHERE saga = $1 AND step = coalesce($2, step)) t}, $id, $step);
}

# A server that a kill has brought down comes back by itself.
sub again
{
  my $end = time + 20;
  eval { $dbh->disconnect };
  while (time < $end)
  {
    $dbh = eval { my $new = session($node, 'postgres'); one($new, 'SELECT 1'); $new };
    return if $dbh;
    sleep 0.05;
  }
  die 'the server does not come back';
}

# The worker that has an item at the gate.
sub pid_at_gate
{
  my ($id, $item) = @_;
  return one($dbh, q{SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = ? AND objid = ?}, $id, $item);
}

# Items "2,5" that are there.
sub gate_becomes
{
  my ($name, $id, $expected) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  return eventually($name, $dbh, $expected, q{SELECT coalesce(string_agg(objid::text, ',' ORDER BY objid), '') FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND classid = ?}, $id)
    || tell_state();
}

sub kill_worker
{
  my ($pid) = @_;
  kill 'KILL', $pid;
  my $end = time + 20;
  while (eval { one($dbh, 'SELECT 1') })
  {
    die 'the server lives on' if time > $end;
    sleep 0.01;
  }
  again();
  return;
}

sub open_gate
{
  $dbh->do('INSERT INTO opened VALUES (?)', undef, $_[0]);
  return;
}

# "item attempt" of what ran
sub ran
{
  my ($id) = @_;
  return one($dbh, q{SELECT string_agg(coalesce(item::text, step) || ' ' || attempt, ',' ORDER BY item, step, id) FROM ran
    WHERE saga = ?}, $id);
}

sub workers
{
  return one($dbh, 'SELECT count(*) ' . WORKERS, 'postgres');
}

### Work in proportion

# Of tables that were empty when a statement was planned nothing is known.
{
  my $n = 3000;
  my $id = one($dbh, q{SELECT coord.saga_start('quick', jsonb_build_object('items', ARRAY(SELECT generate_series(1, ?::int))))}, $n);
  status_becomes('many quick items are done', $id, 'completed');
  eventually('the workers have gone', $dbh, 0, 'SELECT count(*) ' . WORKERS, 'postgres');
  cmp_ok(one($dbh, q{SELECT idx_tup_read FROM pg_stat_all_indexes WHERE indexrelname = 'task_queue'}),
    '<', 20 * $n, 'and no more of the queue was read than in proportion to them');
}

### At the same time

{
  my $id = start('branches', '{"meet": 3}');
  status_becomes('three branches that wait for each other are done', $id, 'completed');
  is(one($dbh, q{SELECT count(DISTINCT pid) FROM ran WHERE saga = ?}, $id), 3, 'by three workers');
  is(one($dbh, q{SELECT max(began) < min(ended) FROM ran WHERE saga = ?}, $id), 1, 'at the same time');
  is(one($dbh, q{SELECT string_agg(step, ',') FROM effect WHERE saga = ?}, $id), 'd', 'and then the step after them');
  is(one($dbh, q{SELECT bool_and(e.started_at >= b.finished_at) FROM coord.saga_steps e JOIN coord.saga_steps b USING (saga_id)
      WHERE saga_id = ? AND e.step = 'd' AND b.step <> 'd'}, $id), 1, 'after all of them');

  $id = start('met', '{"meet": 3, "items": [0, 1, 2, 3, 4, 5, 6]}');
  status_becomes('items that wait for each other are done', $id, 'completed');
  like(overlap($id), qr/^3 in /, 'by as many workers as there may be');
  is(one($dbh, q{SELECT coord.saga_output(?)}, $id), '{"i": ["0", "1", "2", "3", "4", "5", "6"]}', 'with results in their order');

  $id = start('two', '{"meet": 2, "items": [0, 1, 2, 3, 4, 5, 6]}');
  status_becomes('items of which two may run at a time are done', $id, 'completed');
  like(overlap($id), qr/^2 in /, 'by two workers at a time');

  # More to do than workers allowed.
  my $items = join ',', 0 .. 39;
  $id = start('many', qq({"items": [$items]}));
  my $other = one($dbh, q{SELECT coord.saga_start('many', ?)}, qq({"items": [$items]}));
  my $most = 0;
  while (one($dbh, q{SELECT count(*) FROM coord.sagas WHERE id = ANY (?) AND status = 'running'}, [ $id, $other ]))
  {
    my $now = workers();
    $most = $now if $now > $most;
    last if one($dbh, q{SELECT clock_timestamp() > created_at + '20 s' FROM coord.sagas WHERE id = ?}, $id);
  }
  status_becomes("many items are done, $_", $_, 'completed') foreach $id, $other;
  is($most, 3, 'coord.max_workers is used and not exceeded');
  is(one($dbh, q{SELECT max(n) FROM (SELECT (SELECT count(*) FROM ran o WHERE o.saga = ANY ($1) AND o.began <= r.began AND o.ended > r.began) AS n
      FROM ran r WHERE saga = ANY ($1)) t}, [ $id, $other ]), 3, 'nor is it by what runs');
  is(one($dbh, q{SELECT count(*) || ' ' || count(DISTINCT (saga, item)) FROM ran WHERE saga = ANY (?)}, [ $id, $other ]), '80 80',
    'each item once');
  eventually('then the workers go home', $dbh, 0, 'SELECT count(*) ' . WORKERS, 'postgres');

  # One more allowed, while they run.
  my $at_gate = q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = ?};
  $id = start('gates', '{"gate": "more", "items": [0, 1, 2, 3, 4, 5]}');
  eventually('three of six items run', $dbh, 3, $at_gate, $id);
  is(workers(), 3, 'in three workers');
  $dbh->do(q{ALTER SYSTEM SET coord.max_workers = 4});
  $node->reload;
  eventually('a fourth as soon as four workers are allowed', $dbh, 4, $at_gate, $id);
  $dbh->do(q{ALTER SYSTEM RESET coord.max_workers});
  $node->reload;
  open_gate('more');
  status_becomes('all are done', $id, 'completed');
  is(ran($id), '0 1,1 1,2 1,3 1,4 1,5 1', 'once each, in one attempt');
}

### pg_terminate_backend()

{
  my $id = start('gates', '{"gate": "terminated", "items": [0, 1, 2]}');
  gate_becomes('three items run', $id, '0,1,2');
  my %pid = map { $_ => pid_at_gate($id, $_) } 0 .. 2;
  is(one($dbh, 'SELECT pg_terminate_backend(?)', $pid{1}), 1, 'a worker is terminated in the middle of an item');
  eventually('another one takes the item', $dbh, 1, q{SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND classid = ? AND objid = 1 AND pid <> ?}, $id, $pid{1});
  is(one($dbh, q{SELECT count(*) FROM coord.saga_steps WHERE saga_id = ? AND item IS NOT NULL}, $id), 3,
    'coord.saga_steps shows all three');
  open_gate('terminated');
  status_becomes('all are done', $id, 'completed');
  is(ran($id), '0 1,1 1,2 1', 'once each, and no attempt is charged');
  is(one($dbh, q{SELECT string_agg(item::text, ',' ORDER BY item) FROM ran WHERE saga = ? AND pid = ANY (?)}, $id, [ values %pid ]), '0,2',
    'the others were not disturbed');
  is(one($dbh, q{SELECT count(*) FROM coord.saga_log WHERE saga_id = ?}, $id), 0, 'nothing has failed');

  $id = start('gated branches', '{"gate": "branch"}');
  gate_becomes('two branches run', $id, '197,198');
  my $pid = pid_at_gate($id, 197);
  my $neighbour = pid_at_gate($id, 198);
  one($dbh, 'SELECT pg_terminate_backend(?)', $pid);
  eventually('another worker takes the branch of one that was terminated', $dbh, 1, q{SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND classid = ? AND objid = 197 AND pid <> ?}, $id, $pid);
  is(pid_at_gate($id, 198), $neighbour, 'the other branch goes on');
  open_gate('branch');
  status_becomes('both are done', $id, 'completed');
  is(ran($id), 'a 1,b 1', 'once each, and no attempt is charged');
  is(one($dbh, q{SELECT string_agg(step, ',') FROM effect WHERE saga = ?}, $id), 'n', 'and what comes after them');
}

### kill -9: the server restarts, and whoever was in hand is tried alone

{
  my $id = start('gates', '{"gate": "killed", "items": [0, 1]}');
  gate_becomes('two items of a saga run', $id, '0,1');
  my $other = one($dbh, q{SELECT coord.saga_start('gates', '{"gate": "killed", "items": [0]}')});
  gate_becomes('and one of another', $other, '0');
  kill_worker(pid_at_gate($id, 1));

  my $alone = q{SELECT string_agg(CASE classid::bigint WHEN ? THEN 'first' ELSE 'other' END || ' ' || objid, ',') FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND classid IN (?, ?)};
  my @alone = ($id, $id, $other);
  my $attempts = q{SELECT coalesce(string_agg(CASE saga_id WHEN ? THEN 'first' ELSE 'other' END || ' ' || item || ' ' || attempt, ','
    ORDER BY saga_id, item) FILTER (WHERE attempt > 0), '') FROM coord_internal.task};
  eventually('after kill -9 one of them runs, alone', $dbh, 1, "SELECT (($alone) ~ '^[a-z]+ [0-9]\$')::int", @alone);
  my $suspect = one($dbh, $alone, @alone);
  is(one($dbh, $attempts, $id), "$suspect 1", 'and is the only one that is charged an attempt');
  like($suspect, qr/^[a-z]+ \d$/, 'alone still');

  my ($which, $item) = split / /, $suspect;
  kill_worker(pid_at_gate($which eq 'first' ? $id : $other, $item));
  eventually('after another kill -9 one runs alone again', $dbh, 1, "SELECT (($alone) ~ '^[a-z]+ [0-9]\$')::int", @alone);
  is(one($dbh, $alone, @alone), $suspect, 'the same, so that it comes to an end');
  is(one($dbh, $attempts, $id), "$suspect 2", 'and was charged again, and nobody else');
  open_gate('killed');
  status_becomes('all is done, the first saga', $id, 'completed');
  status_becomes('the other one', $other, 'completed');
  my %expected = ('first 0' => 1, 'first 1' => 1, 'other 0' => 1, $suspect => 2);
  is(ran($id), "0 $expected{'first 0'},1 $expected{'first 1'}", 'items of the first once each, one attempt for each time alone');
  is(ran($other), "0 $expected{'other 0'}", 'that of the other, too');
  is(one($dbh, q{SELECT string_agg(step, ',') FROM effect WHERE saga IN (?, ?)}, $id, $other), 'n,n', 'and what comes after them');
}

# An item that brings the server down each time, among good ones.
{
  my $position = log_size($node);
  my $id = start('crashing', '{"items": [0, 1, "crash", 3, 4]}');
  my $end = time + 30;
  my $status = '';
  while (time < $end && $status ne 'completed')
  {
    $status = eval { one($dbh, q{SELECT coord.saga_status(?)}, $id) } // do { again(); '' };
    sleep 0.05;
  }
  is($status, 'completed', 'a saga with an item that crashes the server is done');
  my $crashes = () = log_since($node, $position) =~ /was terminated by signal 9/g;
  cmp_ok($crashes, '>=', 2, 'it crashed in both attempts');
  cmp_ok($crashes, '<=', 3, "and then no more: $crashes crashes");
  is(ran($id), '0 1,1 1,3 1,4 1', 'the good items are done, once, in one attempt each');
  is(one($dbh, q{SELECT string_agg(attempt || ' ' || error, ',') FROM coord.saga_log WHERE saga_id = ?}, $id),
    '2 the server crashed during each attempt', 'the log says what was wrong with the other');
}

eventually('all sagas are finished', $dbh, 0, q{SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL});
is(one($dbh, 'SELECT count(*) FROM coord.stuck'), 0, 'nothing is stuck');
is(one($dbh, "SELECT count(*) FROM coord_internal.$_"), 0, "coord_internal.$_ is empty") foreach qw(task saga_inbox saga_signal);
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal (?!9\b)/, 'no other crashes');
eventually('and the workers go home', $dbh, 0, 'SELECT count(*) ' . WORKERS, 'postgres');
$dbh->disconnect;
$node->stop;
done_testing();
