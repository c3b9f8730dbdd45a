# Three workers outside, who complete, fail, give back, vanish and come too late, under
# storms of operators' verbs and signals and kill -9 of whoever; then no task was
# finished twice, none is lost, and every saga has come to its end.
#
# Half a minute of it; COORD_SHORT=1 for a few seconds.  COORD_SEED repeats a run, as far
# as the processes' own choices go.

use strict;
use warnings FATAL => 'all';
use DBI;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $seed = $ENV{COORD_SEED} // 4711;
my $storm_seconds = $ENV{COORD_SHORT} ? 10 : 28;
my $patience = 30;
my $workers = 3;

my $node = PostgreSQL::Test::Cluster->new('torture');
$node->init;
$node->append_conf('postgresql.conf', q{
shared_preload_libraries = 'coord'
restart_after_crash = on
fsync = off
max_connections = 40
max_worker_processes = 16
log_statement = none
coord.max_workers = 3
});
$node->start;
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');
$node->safe_psql('postgres', q{
CREATE EXTENSION coord;
CREATE ROLE app LOGIN;
GRANT coord_user TO app;

-- Without keys: what is there twice was done twice.
CREATE TABLE accepted (key text, task bigint, token bigint, saga bigint, step text, phase text, item int);
CREATE TABLE effect (saga bigint, step text, item int, phase text);
GRANT ALL ON accepted, effect TO app;
CREATE FUNCTION act(doc jsonb) RETURNS jsonb LANGUAGE sql AS
  $$ INSERT INTO public.effect VALUES ((doc ->> 'saga_id')::bigint, doc ->> 'step', (doc ->> 'index')::int, 'action')
     RETURNING to_jsonb(item) $$;
CREATE FUNCTION undo(doc jsonb) RETURNS void LANGUAGE sql AS
  $$ INSERT INTO public.effect VALUES ((doc ->> 'saga_id')::bigint, doc ->> 'step', (doc ->> 'index')::int, 'compensation') $$;
CREATE FUNCTION act_slowly(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS
  $$ BEGIN PERFORM pg_sleep(0.01); RETURN public.act(doc); END $$;
CREATE FUNCTION act_flakily(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS
  $$ BEGIN
    IF (doc ->> 'attempt')::int % 3 <> 0 AND (doc ->> 'saga_id')::int % 4 = 0 THEN
      RAISE 'not yet' USING ERRCODE = '57P03';
    END IF;
    RETURN public.act(doc);
  END $$;

SET ROLE app;
-- A kill costs a local step that was in hand an attempt: enough of them.
SELECT coord.saga_define('order', ARRAY[
  coord.step('a', 'act', 'undo', max_attempts => 1000, retry_delay => '10 ms'),
  coord.step('pay', queue => 'pay', compensation => 'refund', retry_delay => '20 ms', max_attempts => 1000),
  coord.step('ship', queue => 'ship', compensation => 'fetch', retry_delay => '20 ms', max_attempts => 1000, after => '{pay}'),
  coord.step('mail', 'act_slowly', 'undo', after => '{pay}', max_attempts => 1000, retry_delay => '10 ms'),
  coord.step_signal('wait', 'go', timeout => '2 s', on_timeout => 'continue', after => '{ship,mail}'),
  coord.step('last', 'act_flakily', 'undo', max_attempts => 1000, retry_delay => '10 ms')]);
SELECT coord.saga_define('fan', ARRAY[
  coord.step('each', queue => 'pay', compensation => 'uneach', for_each => '$.input.items[*]', max_parallel => 3,
    retry_delay => '20 ms', max_attempts => 1000),
  coord.step('own', 'act_slowly', 'undo', for_each => '$.input.items[*]', max_attempts => 1000, retry_delay => '10 ms'),
  coord.step('last', 'act', 'undo', max_attempts => 1000)]);
SELECT coord.saga_define('leaf', ARRAY[
  coord.step('t', queue => 'ship', compensation => 'unt', retry_delay => '20 ms', max_attempts => 1000),
  coord.step_sleep('s', '50 ms'),
  coord.step('l', 'act', 'undo', max_attempts => 1000, retry_delay => '10 ms')]);
SELECT coord.saga_define('tree', ARRAY[
  coord.step_saga('left', 'leaf', after => '{}'),
  coord.step_saga('right', 'leaf', after => '{}'),
  coord.step('last', 'act', 'undo', after => '{left,right}', max_attempts => 1000)]);
-- Of few attempts: turns back often, or stops.
SELECT coord.saga_define('short', ARRAY[
  coord.step('a', queue => 'ship', compensation => 'una', max_attempts => 1000, retry_delay => '10 ms'),
  coord.step('b', queue => 'pay', compensation => 'unb', max_attempts => 2, retry_delay => '10 ms')]);
SELECT coord.saga_define('stop', ARRAY[
  coord.step('a', 'act', 'undo', max_attempts => 1000),
  coord.step('b', queue => 'ship', compensation => 'unb', max_attempts => 2, retry_delay => '10 ms'),
  coord.step('c', 'act', 'undo', max_attempts => 1000)], on_exhausted => 'suspend');
RESET ROLE;

CREATE TABLE kind (name text, step text, kind text);
INSERT INTO kind VALUES ('order', 'a', 'local'), ('order', 'pay', 'queue'), ('order', 'ship', 'queue'), ('order', 'mail', 'local'),
  ('order', 'wait', 'wait'), ('order', 'last', 'local'), ('fan', 'each', 'queue items'), ('fan', 'own', 'local items'),
  ('fan', 'last', 'local'), ('leaf', 't', 'queue'), ('leaf', 's', 'wait'), ('leaf', 'l', 'local'), ('tree', 'left', 'saga'),
  ('tree', 'right', 'saga'), ('tree', 'last', 'local'), ('short', 'a', 'queue'), ('short', 'b', 'queue'), ('stop', 'a', 'local'),
  ('stop', 'b', 'queue'), ('stop', 'c', 'local');
});

### Processes that go on whatever happens to their server

my $dir = PostgreSQL::Test::Utils::tempdir();
my $parent = $$;
my $finale_file = "$dir/finale";
my $stop_file = "$dir/stop";

sub connect_as
{
  my ($role) = @_;
  return DBI->connect('dbi:Pg:dbname=postgres;host=' . $node->host . ';port=' . $node->port, $role, '',
    { RaiseError => 1, PrintError => 0, PrintWarn => 0, AutoCommit => 1 });
}

sub connect_surely
{
  my ($role) = @_;
  my $until = time + $patience;
  for (;;)
  {
    my $dbh = eval { connect_as($role) };
    return $dbh if $dbh;
    die "the server does not come back: $@" if time > $until;
    sleep 0.02;
  }
}

# Runs $step->(handle) in a new process until told to stop.  An error that is not
# among those that $allowed matches ends it badly.
sub go_on
{
  my ($name, $number, $role, $allowed, $step) = @_;
  my $pid = fork // die $!;
  return $pid if $pid;
  srand($seed + $number);
  my ($dbh, %count);
  open my $log, '>>', "$dir/$name" or die $!;
  $log->autoflush(1);
  my $note = sub { print $log join(' ', @_), "\n" };
  while (!-e $stop_file && getppid == $parent)
  {
    my $done = eval {
      $dbh //= connect_as($role);
      $step->($dbh, $note);
      1;
    };
    next if $done;
    my $error = $@;
    if (!$dbh || !eval { $dbh->ping })
    {
      undef $dbh;
      sleep 0.02;
      next;
    }
    my $state = $dbh->state;
    eval { $dbh->rollback } unless $dbh->{AutoCommit};
    if ($state =~ $allowed)
    {
      $note->('refused', $state);
      next;
    }
    $note->('ERROR', $state, $error =~ s/\n/ /gr);
    POSIX::_exit(1);
  }
  POSIX::_exit(0);
}

### A worker outside

sub claim
{
  my ($dbh, $queue, $max, $lease, $timeout) = @_;
  return @{ $dbh->selectall_arrayref(q{SELECT task_id, token, saga_id, step, phase, item, idempotency_key, null_compensation
    FROM coord.task_claim(?, ?, 'w', ?, ?)}, { Slice => {} }, $queue, $max, $lease, $timeout) };
}

sub result_of
{
  my ($task) = @_;
  return sprintf '{"token": %d, "item": %s}', $task->{token}, $task->{item} // 'null';
}

sub write_down
{
  my ($dbh, $task) = @_;
  $dbh->do('INSERT INTO accepted VALUES (?, ?, ?, ?, ?, ?, ?)', undef,
    @$task{qw(idempotency_key task_id token saga_id step phase item)});
  return;
}

# Completes, with the ledger in the same transaction.
sub finish
{
  my ($dbh, $note, $task) = @_;
  $dbh->begin_work;
  my ($accepted) = $dbh->selectrow_array('SELECT coord.task_complete(?, ?, ?)', undef, @$task{qw(task_id token)}, result_of($task));
  if ($accepted)
  {
    write_down($dbh, $task);
    if (rand() < 0.03)
    {
      $dbh->rollback;
      return;
    }
  }
  $dbh->commit;
  $note->($accepted ? 'completed' : 'repeated');
  return;
}

sub finish_many
{
  my ($dbh, $note, @tasks) = @_;
  my %task = map { $_->{task_id} => $_ } @tasks;
  $dbh->begin_work;
  my $accepted = $dbh->selectcol_arrayref('SELECT unnest(coord.task_complete_many(?, ?, ?))', undef,
    [ map { $_->{task_id} } @tasks ], [ map { $_->{token} } @tasks ], '[' . join(',', map { result_of($_) } @tasks) . ']');
  write_down($dbh, $task{$_}) foreach @$accepted;
  $dbh->commit;
  $note->('completed') foreach @$accepted;
  return;
}

# One batch.
sub work
{
  my ($dbh, $note) = @_;
  my $finale = -e $finale_file;
  my $lease = $finale ? '5 s' : ('100 ms', '300 ms', '1 s', '2 s')[ rand 4 ];
  my $queue = rand() < 0.5 ? 'pay' : 'ship';
  my $max = 1 + int rand 8;

  if (!$finale && rand() < 0.05)
  {
    $dbh->begin_work;
    claim($dbh, $queue, $max, $lease, 0);
    $dbh->rollback;
    return;
  }
  my @tasks = claim($dbh, $queue, $max, $lease, '100 ms');
  if (@tasks && ($finale || rand() < 0.3))
  {
    finish_many($dbh, $note, @tasks);
    return;
  }
  foreach my $task (@tasks)
  {
    my $what = rand;
    my @held = @$task{qw(task_id token)};
    my $go_on = eval {
      if ($what < 0.65)
      {
        finish($dbh, $note, $task);
      }
      elsif ($what < 0.70)
      {
        finish($dbh, $note, $task);
        finish($dbh, $note, $task);
      }
      elsif ($what < 0.80)
      {
        $dbh->do(q{SELECT coord.task_fail(?, ?, 'no', retry_in => make_interval(secs => ?))}, undef, @held, rand 0.2);
        $note->('failed');
      }
      elsif ($what < 0.82)
      {
        $dbh->do(q{SELECT coord.task_fail(?, ?, 'never', retryable => false)}, undef, @held);
        $note->('failed');
      }
      elsif ($what < 0.87)
      {
        $dbh->do('SELECT coord.task_release(?, ?)', undef, @held);
        $note->('released');
      }
      elsif ($what < 0.92)
      {
        $dbh->do(q{SELECT coord.task_extend(?, ?, '500 ms')}, undef, @held);
        finish($dbh, $note, $task);
      }
      elsif ($what < 0.97)
      {
        $note->('vanished');
      }
      else
      {
        # Too late, perhaps.
        sleep rand 0.5;
        finish($dbh, $note, $task);
      }
      1;
    };
    next if $go_on;
    die $@ unless $dbh->ping && $dbh->state =~ /^ZC0(01|11)$/;
    $note->('refused', $dbh->state);
    $dbh->rollback unless $dbh->{AutoCommit};
  }
  return;
}

### Clients and operators

my $started = 0;
sub storm
{
  my ($dbh, $note) = @_;
  my $what = rand;
  if (-e $finale_file)
  {
    sleep 0.05;
    return;
  }
  my $live = $dbh->selectcol_arrayref('SELECT id FROM coord_internal.saga ORDER BY random()');
  my $saga = $live->[0];
  if ($what < 0.35 || !$saga)
  {
    return sleep 0.01 if @$live > 150;
    $dbh->begin_work;
    $dbh->do('SET LOCAL ROLE app');
    my @ids;
    foreach (1 .. 1 + int rand 6)
    {
      my $name = (qw(order order fan tree short stop))[ rand 6 ];
      my ($id) = $dbh->selectrow_array('SELECT coord.saga_start(?, ?, key => ?, priority => ?)', undef, $name,
        sprintf('{"items": [%s]}', join ',', 0 .. int rand 8), "$$-" . $started++, int rand 3);
      push @ids, $id;
    }
    $dbh->commit;
    $note->('started', $_) foreach @ids;
  }
  elsif ($what < 0.43)
  {
    # Of two one with items that are done.
    my ($half_done) = rand() < 0.5 ? $dbh->selectrow_array(q{SELECT saga_id FROM coord_internal.task
      WHERE item >= 0 AND status = 'completed' ORDER BY random() LIMIT 1}) : ();
    $dbh->do(q{SELECT coord.saga_cancel(?, interrupt => ?)}, undef, $half_done // $saga, rand() < 0.2 ? 1 : 0);
    $note->('cancelled');
  }
  elsif ($what < 0.53)
  {
    $dbh->do('SELECT coord.saga_pause(?)', undef, $saga);
    $note->('paused');
  }
  elsif ($what < 0.68)
  {
    $dbh->do(q{SELECT coord.saga_resume(id) FROM coord_internal.saga WHERE status = 'paused'});
  }
  elsif ($what < 0.76)
  {
    $dbh->do(q{SELECT coord.saga_retry(id) FROM coord_internal.saga WHERE status = 'suspended'});
    $note->('retried');
  }
  elsif ($what < 0.92)
  {
    my ($id) = $dbh->selectrow_array(q{SELECT s.id FROM coord_internal.saga s JOIN coord_internal.saga_version v ON v.id = s.definition
      WHERE v.name = 'order' ORDER BY random() LIMIT 1});
    return unless $id;
    $dbh->do(q{SELECT coord.saga_signal(?, 'go', ?, ?)}, undef, $id, '{"by": "storm"}', rand() < 0.5 ? 'once' : undef);
    $note->('signalled');
  }
  elsif ($what < 0.96)
  {
    $dbh->do(q{SELECT coord.task_revoke(task_id) FROM (SELECT task_id FROM coord.tasks WHERE status = 'running' AND queue IS NOT NULL
      ORDER BY random() LIMIT 1) t});
    $note->('revoked');
  }
  else
  {
    my $queue = rand() < 0.5 ? 'pay' : 'ship';
    my $setting = ('paused => true', 'max_running => 2', 'rate_limit => 50')[ rand 3 ];
    $dbh->do("SELECT coord.queue_configure('$queue', $setting)");
    sleep rand 0.2;
    $dbh->do("SELECT coord.queue_configure('$queue', paused => false, max_running => 2147483647, rate_limit => 'infinity')");
    $note->('configured');
  }
  sleep rand 0.01;
  return;
}

my %pid = (storm => go_on('storm', 100, $superuser, qr/^ZC006$/, \&storm));

sub start_worker
{
  my ($n) = @_;
  $pid{"worker$n"} = go_on("worker$n", $n, 'app', qr/^ZC0(01|11)$/, \&work);
  return;
}
start_worker($_) foreach 1 .. $workers;

### What is always so

# Whoever is not finished waits for something that will come, or is in coord.stuck.
my $forgotten = q{
  SELECT string_agg(concat_ws(' ', s.id, v.name, s.status,
           (SELECT '(' || string_agg(concat_ws(' ', t.ordinal, t.status, t.waiting, t.child), ', ') || ')'
            FROM coord_internal.saga_step t WHERE t.saga_id = s.id)), ', ')
  FROM coord_internal.saga s JOIN coord_internal.saga_version v ON v.id = s.definition
  WHERE s.finished_at IS NULL AND s.wake_at IS NULL
    AND NOT EXISTS (SELECT FROM coord_internal.saga_inbox i WHERE i.saga_id = s.id)
    AND NOT EXISTS (SELECT FROM coord_internal.task t WHERE t.saga_id = s.id AND t.status IN ('ready', 'running'))
    AND NOT EXISTS (SELECT FROM coord_internal.saga_step t JOIN coord_internal.saga c ON c.id = t.child
                    WHERE t.saga_id = s.id AND t.waiting
                      AND (c.finished_at IS NULL OR EXISTS (SELECT FROM coord_internal.saga_inbox i WHERE i.saga_id = c.id)))
    AND NOT EXISTS (SELECT FROM coord_internal.saga_step t
                    WHERE t.saga_id = s.id AND t.waiting AND t.status = 'running'
                      AND v.definition #> ARRAY['steps', t.ordinal::text, 'signal'] IS NOT NULL
                      AND NOT EXISTS (SELECT FROM coord_internal.saga_signal g WHERE g.saga_id = s.id AND NOT g.consumed))
    AND s.id::text NOT IN (SELECT id FROM coord.stuck WHERE kind = 'saga')};
my ($looked, @forgotten) = (0);
my $monitor = connect_surely($superuser);

sub look
{
  my $found = eval { ($monitor->selectrow_array($forgotten))[0] // '' };
  if (!defined $found)
  {
    my $error = $@;
    die $error if eval { $monitor->ping };
    eval { $monitor->disconnect };
    $monitor = connect_surely($superuser);
    return;
  }
  $looked++;
  push @forgotten, $found if $found ne '';
  return;
}

### Killing

my %kills;

sub processes
{
  return grep { (readlink("/proc/$_/cwd") // '') eq $node->data_dir } map { m{(\d+)} } glob '/proc/[0-9]*';
}

sub wait_for
{
  my ($what, $check) = @_;
  my $until = time + $patience;
  until ($check->())
  {
    die "timed out waiting for $what" if time > $until;
    sleep 0.01;
  }
  return;
}

sub strike
{
  my ($way) = @_;
  my $postmaster = (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];
  my $pid;

  if ($way eq 'outside')
  {
    my $n = 1 + int rand $workers;
    kill 'KILL', $pid{"worker$n"};
    waitpid $pid{"worker$n"}, 0;
    $kills{$way}++;
    start_worker($n);
    return;
  }
  if ($way eq 'worker' || $way eq 'backend')
  {
    my ($type, $role) = $way eq 'worker' ? ('coord worker', 'coord_worker') : ('client backend', 'app');
    $pid = eval { ($monitor->selectrow_array(q{SELECT pid FROM pg_stat_activity WHERE backend_type = ? AND usename = ?
      ORDER BY random() LIMIT 1}, undef, $type, $role))[0] };
    return unless $pid && kill 'KILL', $pid;
    $kills{$way}++;
  }
  else
  {
    $way eq 'postmaster' ? $node->kill9 : $node->stop('immediate');
    $kills{$way}++;
  }
  wait_for("the end of connections after $way", sub { !eval { $monitor->do('SELECT 1'); 1 } });
  eval { $monitor->disconnect };
  if ($way eq 'postmaster' || $way eq 'immediate')
  {
    # Orphans need a moment to let go of the shared memory.
    wait_for('the end of all processes', sub { !kill(0, $postmaster) && !processes() });
    $node->start;
  }
  $monitor = connect_surely($superuser);
  return;
}

srand $seed;
my @ways = qw(outside worker backend postmaster immediate outside);
my $storm_end = time + $storm_seconds;
my $next_kill = time + 1;
my $n = 0;
# Longer on a slow machine.
sub enough
{
  return time > $storm_end && $n >= @ways
    && (eval { ($monitor->selectrow_array('SELECT count(*) FROM accepted'))[0] } // 0) >= 300
    || time > $storm_end + 60;
}
until (enough())
{
  look();
  sleep 0.1;
  next if time < $next_kill;
  strike($n < @ways ? $ways[$n] : $ways[ rand @ways ]);
  $n++;
  $next_kill = time + 0.6 + rand 1;
}

### The end: everybody is well-behaved, and operators repair what they have to

append_to_file($finale_file, '');
sub unfinished
{
  return ($monitor->selectrow_array('SELECT count(*) FROM coord_internal.saga'))[0];
}
my $left = unfinished();
my $until = time + $patience;
my $least = $left;
while ($left > 0 && time < $until)
{
  look();
  $monitor->do($_) foreach q{SELECT coord.saga_resume(id) FROM coord_internal.saga WHERE status = 'paused'},
    q{SELECT coord.saga_retry(id) FROM coord_internal.saga WHERE status = 'suspended'},
    q{SELECT coord.queue_configure(queue, paused => false, max_running => 2147483647, rate_limit => 'infinity') FROM coord.queues};
  sleep 0.1;
  $left = unfinished();
  $until = time + $patience / 2 if $left < $least;
  $least = $left if $left < $least;
}
is($left, 0, 'every saga is finished')
  or diag $node->safe_psql('postgres', q{
    SELECT s.id, v.name, s.status, s.backward, s.wake_at, now(), s.parent_id,
      (SELECT string_agg(concat_ws(' ', ordinal, t.status, phase, waiting, child), ', ') FROM coord_internal.saga_step t WHERE t.saga_id = s.id),
      (SELECT string_agg(concat_ws(' ', id, ordinal, item, phase, t.status, queue, attempt), ', ') FROM coord_internal.task t WHERE t.saga_id = s.id),
      (SELECT count(*) FROM coord_internal.saga_inbox t WHERE t.saga_id = s.id)
    FROM coord_internal.saga s JOIN coord_internal.saga_version v ON v.id = s.definition LIMIT 20;
    SELECT * FROM coord.queues; SELECT * FROM coord.workers; SELECT * FROM coord.stuck LIMIT 10});
append_to_file($stop_file, '');
foreach my $name (sort keys %pid)
{
  waitpid $pid{$name}, 0;
  is($?, 0, "$name has ended well");
}
my (%noted, %started, @errors);
foreach my $name (sort keys %pid)
{
  foreach my $line (split /\n/, slurp_file("$dir/$name"))
  {
    if ($line =~ /^ERROR/)
    {
      push @errors, "$name: $line";
      diag $errors[-1];
      diag $node->safe_psql('postgres', qq{SELECT s FROM coord.sagas s WHERE id = $1; SELECT s FROM coord.saga_steps s WHERE saga_id = $1;
        SELECT l FROM coord.saga_log l WHERE saga_id = $1 ORDER BY id}) if $line =~ /saga (\d+)/;
      next;
    }
    $noted{$line =~ s/ \d+$//r}++;
    $started{$1} = 1 if $line =~ /^started (\d+)/;
  }
}
note join ', ', map { "$_ $noted{$_}" } sort keys %noted;
is_deeply(\@errors, [], 'none has met an error that it should not');
is(scalar(@forgotten), 0, "whoever was not finished waited for something, at each of $looked looks")
  or diag join "\n", @forgotten[ 0 .. ($#forgotten < 5 ? $#forgotten : 5) ];
cmp_ok($looked, '>=', 20, 'enough of them');
cmp_ok($kills{$_} // 0, '>', 0, ($kills{$_} // 0) . " kills of kind $_") foreach qw(outside worker backend postmaster immediate);
cmp_ok(scalar(keys %started), '>=', $ENV{COORD_SHORT} ? 50 : 150, scalar(keys %started) . ' sagas were started');
cmp_ok($noted{$_} // 0, '>', 0, "$_: " . ($noted{$_} // 0))
  foreach qw(completed failed released vanished repeated cancelled paused retried signalled revoked configured), 'refused ZC001';

# A saga that ended while somebody signalled it: housekeeping deletes that, which a new
# worker does first.
$monitor->disconnect;
$node->restart;
$monitor = connect_surely($superuser);
foreach my $table (qw(task saga_inbox saga_signal saga saga_step saga_request))
{
  wait_for("$table to be empty", sub { ($monitor->selectrow_array("SELECT count(*) FROM coord_internal.$table"))[0] == 0 || time > $until + $patience });
  is(($monitor->selectrow_array("SELECT count(*) FROM coord_internal.$table"))[0], 0, "coord_internal.$table is empty");
}

sub nothing
{
  my ($query, $what) = @_;
  is($node->safe_psql('postgres', "$query LIMIT 10"), '', $what);
  return;
}

nothing('SELECT * FROM coord.stuck', 'nothing is stuck');
nothing(q{SELECT id, status FROM coord.sagas WHERE status NOT IN ('completed', 'compensated', 'failed')}, 'each saga has come to its end');
is(($monitor->selectrow_array('SELECT count(*) FROM coord.sagas WHERE id = ANY (?)', undef, [ keys %started ]))[0],
  scalar(keys %started), 'every saga whose start was acknowledged is there');
nothing('SELECT key, count(*) FROM accepted GROUP BY key HAVING count(*) > 1', 'no task was finished twice');
nothing('SELECT task, count(DISTINCT key) FROM accepted GROUP BY task HAVING count(DISTINCT key) > 1', 'a task has one key');
nothing('SELECT saga, step, item, phase, count(*) FROM effect GROUP BY 1, 2, 3, 4 HAVING count(*) > 1', 'no local step was done twice');

# Steps of sagas, and what the ledgers say of them.
$node->safe_psql('postgres', q{
CREATE TABLE saga AS SELECT id, name, status, input, correlation_id FROM coord.sagas;
CREATE TABLE saga_step AS SELECT saga_id, step, status, result FROM coord.saga_steps WHERE item IS NULL;
CREATE INDEX ON accepted (saga, step, phase);
CREATE INDEX ON effect (saga, step, phase);
CREATE TABLE step AS
SELECT s.id, s.name, s.status AS saga_status, t.step, k.kind, t.status, t.result, s.input,
       (SELECT count(*)::int FROM accepted a WHERE (a.saga, a.step, a.phase) = (s.id, t.step, 'action')) AS accepted,
       (SELECT count(*)::int FROM accepted a WHERE (a.saga, a.step, a.phase) = (s.id, t.step, 'compensation')) AS unaccepted,
       (SELECT count(*)::int FROM effect a WHERE (a.saga, a.step, a.phase) = (s.id, t.step, 'action')) AS done,
       (SELECT count(*)::int FROM effect a WHERE (a.saga, a.step, a.phase) = (s.id, t.step, 'compensation')) AS undone
FROM saga s JOIN saga_step t ON t.saga_id = s.id JOIN kind k ON (k.name, k.step) = (s.name, t.step)});
my $wrong = 'SELECT id, name, saga_status, step, status, accepted, unaccepted, done, undone FROM step';
nothing(q{SELECT name, step FROM kind EXCEPT SELECT name, step FROM step WHERE status = 'completed'},
  'each step was completed in some saga');
cmp_ok($node->safe_psql('postgres', q{SELECT min(n) FROM (SELECT count(*) FILTER (WHERE status = 'compensated') AS n FROM step
    WHERE kind IN ('queue', 'queue items', 'local') GROUP BY kind) t}), '>', 0, 'steps of each kind were undone');
nothing("$wrong WHERE status NOT IN ('completed', 'compensated', 'skipped', 'failed', 'pending', 'ready')", 'no step is in between');
nothing("$wrong WHERE saga_status = 'completed' AND status <> 'completed'", 'of a completed saga all steps are completed');
nothing("$wrong WHERE saga_status <> 'completed' AND status = 'completed' AND kind <> 'wait'",
  'of one that turned back nothing is left that was not undone');
nothing(qq{$wrong WHERE kind = 'queue' AND (
    CASE status WHEN 'completed' THEN (accepted, unaccepted) <> (1, 0)
                WHEN 'compensated' THEN accepted > 1 OR unaccepted <> 1
                ELSE (accepted, unaccepted) <> (0, 0) END OR done + undone > 0)},
  'a task is completed, or undone, exactly if a worker was told so');
nothing(qq{$wrong s WHERE kind = 'queue' AND status = 'completed'
             AND (result ->> 'token')::bigint <> (SELECT token FROM accepted a WHERE (a.saga, a.step, a.phase) = (s.id, s.step, 'action'))},
  'its result is that of the one that was accepted');
nothing(qq{$wrong WHERE kind = 'queue items' AND CASE status
      WHEN 'completed' THEN (accepted, unaccepted) <> (jsonb_array_length(input -> 'items'), 0)
        OR accepted <> jsonb_array_length(result)
      WHEN 'compensated' THEN unaccepted < accepted OR unaccepted > jsonb_array_length(input -> 'items')
      ELSE accepted + unaccepted > 0 END}, 'so are items');
nothing(q{SELECT s.id, e.n, e.v FROM step s CROSS JOIN jsonb_array_elements(result) WITH ORDINALITY AS e (v, n)
          WHERE kind = 'queue items' AND status = 'completed' AND NOT EXISTS (SELECT FROM accepted a
            WHERE (a.saga, a.step, a.item, a.phase, a.token) = (s.id, s.step, e.n - 1, 'action', (e.v ->> 'token')::bigint))},
  'with their results, in order');
nothing(q{SELECT saga, step, item FROM accepted a WHERE phase = 'action' AND item IS NOT NULL
            AND EXISTS (SELECT FROM step s WHERE s.id = a.saga AND s.step = a.step AND s.status = 'compensated')
            AND NOT EXISTS (SELECT FROM accepted c WHERE (c.saga, c.step, c.item, c.phase) = (a.saga, a.step, a.item, 'compensation'))},
  'each item that was done is undone, when its step is');
nothing(qq{$wrong WHERE kind = 'local' AND ((done, undone) <> CASE status WHEN 'completed' THEN (1, 0)
             WHEN 'compensated' THEN (1, 1) ELSE (0, 0) END OR accepted + unaccepted > 0)}, 'local steps are done and undone as they say');
nothing(qq{$wrong WHERE kind = 'local items' AND CASE status
      WHEN 'completed' THEN (done, undone) <> (jsonb_array_length(input -> 'items'), 0)
      WHEN 'compensated' THEN done <> undone
      ELSE done > 0 END}, 'local items, too');
nothing(q{SELECT p.id, p.status, array_agg(c.status) FROM saga p LEFT JOIN saga c ON c.name = 'leaf' AND c.correlation_id = p.correlation_id
          WHERE p.name = 'tree' GROUP BY p.id, p.status
          HAVING CASE p.status WHEN 'completed' THEN array_agg(c.status) <> '{completed,completed}'
                   ELSE count(c.id) > 2 OR 'completed' = ANY (array_agg(c.status)) END}, 'sagas within a saga end as that does');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal (?!9\b)/, 'no other crashes');
$monitor->disconnect;
$node->stop;
done_testing();
