# kill -9 of workers, of the launcher and of the postmaster, and immediate
# shutdowns, under load.  Then the ledger must balance: the tables of effects have
# no keys, so whatever ran twice is there twice.

use strict;
use warnings FATAL => 'all';
use DBI;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $patience = 30;
my $seed = $ENV{COORD_SEED} // int(time);
srand $seed;
note "COORD_SEED=$seed";

my $clients = 3;
my $wanted_kills = $ENV{COORD_LONG} ? 300 : 33;

my $node = PostgreSQL::Test::Cluster->new('kill');
$node->init;
$node->append_conf('postgresql.conf', q{
shared_preload_libraries = 'coord'
restart_after_crash = on
fsync = off
max_connections = 30
log_statement = none
});
$node->start;
$node->safe_psql('postgres', q{
CREATE EXTENSION coord;
CREATE ROLE app LOGIN;
GRANT coord_user TO app;

CREATE TABLE account (id int, balance bigint);
INSERT INTO account SELECT n, 1000000 FROM generate_series(1, 40) n;
CREATE INDEX ON account (id);
CREATE TABLE ledger (saga bigint, step text, kind text, account int, amount bigint);
CREATE TABLE orders (key text, saga bigint);
CREATE INDEX ON orders (key);
GRANT ALL ON account, ledger, orders TO app;

CREATE FUNCTION book(doc jsonb, what text, at int, plus bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO ledger VALUES ((doc ->> 'saga_id')::bigint, doc ->> 'step', what, at, plus);
  IF plus <> 0 THEN
    UPDATE account SET balance = balance + plus WHERE id = at;
  END IF;
END $$;

CREATE FUNCTION debit(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM book(doc, 'do', (doc #>> '{input,from}')::int, - (doc #>> '{input,amount}')::bigint);
  RETURN jsonb_build_object('amount', doc #> '{input,amount}');
END $$;
CREATE FUNCTION credit(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM book(doc, 'do', (doc #>> '{input,to}')::int, (doc #>> '{results,debit,amount}')::bigint);
  RETURN NULL;
END $$;
CREATE FUNCTION undo_debit(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM book(doc, 'undo', (doc #>> '{input,from}')::int, (doc #>> '{result,amount}')::bigint);
END $$;
CREATE FUNCTION undo_credit(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM book(doc, 'undo', (doc #>> '{input,to}')::int, - (doc #>> '{input,amount}')::bigint);
END $$;
CREATE FUNCTION mark(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM book(doc, 'do', 0, 0); END $$;
CREATE FUNCTION unmark(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM book(doc, 'undo', 0, 0); END $$;
CREATE FUNCTION mark_slowly(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM book(doc, 'do', 0, 0); PERFORM pg_sleep(0.005 + random() * 0.06); END $$;
CREATE FUNCTION mark_and_refuse(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM book(doc, 'do', 0, 0); RAISE 'refused'; END $$;
CREATE FUNCTION mark_flakily(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM book(doc, 'do', 0, 0);
  IF (doc ->> 'attempt')::int < 3 THEN
    RAISE 'not yet' USING ERRCODE = '57P03';
  END IF;
END $$;
-- Wait at the gate, with the effect made: who holds the lock knows that the step runs.
CREATE FUNCTION mark_at_gate(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM book(doc, 'do', 0, 0); PERFORM pg_advisory_xact_lock_shared(4711, (doc ->> 'saga_id')::int); END $$;
CREATE FUNCTION unmark_at_gate(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM book(doc, 'undo', 0, 0); PERFORM pg_advisory_xact_lock_shared(4711, (doc ->> 'saga_id')::int); END $$;

SET ROLE app;
-- A kill costs the saga that runs an attempt: enough of them that none runs out.
SELECT coord.saga_define('transfer', ARRAY[
  coord.step('debit', 'debit', 'undo_debit', max_attempts => 1000, retry_delay => '10 ms'),
  coord.step('credit', 'credit', 'undo_credit', max_attempts => 1000, retry_delay => '10 ms'),
  coord.step('last', 'mark', max_attempts => 1000)]);
SELECT coord.saga_define('refused', ARRAY[
  coord.step('debit', 'debit', 'undo_debit', max_attempts => 1000, retry_delay => '10 ms'),
  coord.step('credit', 'credit', 'undo_credit', max_attempts => 1000, retry_delay => '10 ms'),
  coord.step('last', 'mark_and_refuse', 'unmark', max_attempts => 1000)]);
SELECT coord.saga_define('flaky', ARRAY[
  coord.step('first', 'mark', max_attempts => 1000),
  coord.step('last', 'mark_flakily', max_attempts => 1000, retry_delay => '20 ms', retry_max_delay => '20 ms')]);
SELECT coord.saga_define('slow', ARRAY[
  coord.step('debit', 'debit', 'undo_debit', max_attempts => 1000, retry_delay => '10 ms'),
  coord.step('first', 'mark_slowly', max_attempts => 1000),
  coord.step('credit', 'credit', 'undo_credit', max_attempts => 1000, retry_delay => '10 ms'),
  coord.step('last', 'mark_slowly', max_attempts => 1000)]);
SELECT coord.saga_define('bulk', ARRAY[
  coord.step('first', 'mark', max_attempts => 1000), coord.step('second', 'mark', max_attempts => 1000),
  coord.step('last', 'mark', max_attempts => 1000)]);
SELECT coord.saga_define('gate', ARRAY[
  coord.step('first', 'mark', max_attempts => 1000),
  coord.step('gated', 'mark_at_gate', max_attempts => 1000),
  coord.step('last', 'mark', max_attempts => 1000)]);
SELECT coord.saga_define('gate_back', ARRAY[
  coord.step('debit', 'debit', 'undo_debit', max_attempts => 1000, retry_delay => '10 ms'),
  coord.step('gated', 'mark', 'unmark_at_gate', max_attempts => 1000),
  coord.step('last', 'mark_and_refuse', 'unmark', max_attempts => 1000)]);
RESET ROLE;

-- What a saga of each kind has to leave behind, once.
CREATE TABLE expected (name text, status text, step text, kind text);
INSERT INTO expected VALUES
  ('transfer', 'completed', 'debit', 'do'), ('transfer', 'completed', 'credit', 'do'), ('transfer', 'completed', 'last', 'do'),
  ('refused', 'compensated', 'debit', 'do'), ('refused', 'compensated', 'credit', 'do'),
  ('refused', 'compensated', 'debit', 'undo'), ('refused', 'compensated', 'credit', 'undo'),
  ('flaky', 'completed', 'first', 'do'), ('flaky', 'completed', 'last', 'do'),
  ('slow', 'completed', 'debit', 'do'), ('slow', 'completed', 'first', 'do'),
  ('slow', 'completed', 'credit', 'do'), ('slow', 'completed', 'last', 'do'),
  ('bulk', 'completed', 'first', 'do'), ('bulk', 'completed', 'second', 'do'), ('bulk', 'completed', 'last', 'do'),
  ('gate', 'completed', 'first', 'do'), ('gate', 'completed', 'gated', 'do'), ('gate', 'completed', 'last', 'do'),
  ('gate_back', 'compensated', 'debit', 'do'), ('gate_back', 'compensated', 'gated', 'do'),
  ('gate_back', 'compensated', 'debit', 'undo'), ('gate_back', 'compensated', 'gated', 'undo');
});

my $money = $node->safe_psql('postgres', 'SELECT sum(balance) FROM account');

### Connections that come and go with the server

sub connect_as
{
  my ($role) = @_;
  return DBI->connect('dbi:Pg:dbname=postgres;host=' . $node->host . ';port=' . $node->port, $role, '',
    { RaiseError => 1, PrintError => 0, PrintWarn => 0, AutoCommit => 1 });
}

my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

# Retries until the server answers.
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

sub wait_for
{
  my ($what, $check) = @_;
  my $until = time + $patience;
  for (;;)
  {
    my $value = $check->();
    return $value if $value;
    if (time > $until)
    {
      diag $node->safe_psql('postgres', q{
        SELECT name, status, min(wake_at), now(), count(*) FROM coord.sagas WHERE finished_at IS NULL GROUP BY 1, 2;
        SELECT id, name, status, error, key, input, output, started_at FROM coord.sagas WHERE key LIKE 'gate%' ORDER BY id DESC LIMIT 3;
        SELECT * FROM coord.workers;
        SELECT * FROM coord.stuck LIMIT 10;
        SELECT pid, backend_type, state, wait_event, xact_start, query FROM pg_stat_activity});
      die "timed out waiting for $what";
    }
    sleep 0.01;
  }
}

### Clients: start sagas, and again with the same key when the outcome is unknown

my $dir = PostgreSQL::Test::Utils::tempdir();
my $stop_file = "$dir/stop";
my $parent = $$;

sub pick_input
{
  my $from = 1 + int rand 40;
  my $to = 1 + ($from + int rand 39) % 40;
  return sprintf '{"from": %d, "to": %d, "amount": %d}', $from, $to, 1 + int rand 100;
}

sub client
{
  my ($number) = @_;
  my @names = qw(transfer transfer refused flaky slow);
  my $dbh;

  srand($seed + $number);
  open my $log, '>', "$dir/client$number" or die $!;
  $log->autoflush(1);
  for (my $n = 1; !-e $stop_file && getppid == $parent; $n++)
  {
    my $name = $names[ rand @names ];
    my $input = pick_input();
    my $key = "c$number-$n";
    my $kind = rand;

    for (;;)
    {
      my $done = eval {
        $dbh //= connect_as('app');
        if ($kind < 0.1)
        {
          $dbh->begin_work;
          $dbh->do('SELECT coord.saga_start(?, ?, key => ?)', undef, $name, $input, "undone-$key");
          $dbh->rollback;
        }
        elsif ($kind < 0.15)
        {
          my $ids = $dbh->selectcol_arrayref(
            q{SELECT coord.saga_start('bulk', key => ? || '-' || g) FROM generate_series(1, 60) g}, undef, $key);
          print $log "$key-$_ $ids->[$_ - 1]\n" for 1 .. @$ids;
        }
        else
        {
          $dbh->begin_work;
          my ($id) = $dbh->selectrow_array('SELECT coord.saga_start(?, ?, key => ?)', undef, $name, $input, $key);
          $dbh->do('INSERT INTO orders SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM orders WHERE key = $1)',
            undef, $key, $id);
          $dbh->commit;
          print $log "$key $id\n";
        }
        1;
      };
      last if $done;
      my $error = $@;
      if ($dbh && $dbh->ping)
      {
        print $log "ERROR $error\n";
        return;
      }
      return if getppid != $parent;
      undef $dbh;
      sleep 0.02;
    }
    sleep 0.004;
  }
  $dbh->disconnect if $dbh;
}

my @pids;
foreach my $number (1 .. $clients)
{
  my $pid = fork // die $!;
  if ($pid == 0)
  {
    eval { client($number) };
    print STDERR $@ if $@;
    POSIX::_exit($@ ? 1 : 0);
  }
  push @pids, $pid;
}

### Killing

my %kills = (worker => 0, launcher => 0, postmaster => 0, immediate => 0);
my $in_step = 0;
my $monitor = connect_surely($superuser);

# Processes of the server, also those that lost their postmaster.
sub processes
{
  return grep { (readlink("/proc/$_/cwd") // '') eq $node->data_dir } map { m{(\d+)} } glob '/proc/[0-9]*';
}

# Kills in the given way, "pid" being a worker's or the launcher's, and waits
# until all have noticed and the server is back.
sub strike
{
  my ($way, $pid) = @_;
  my $postmaster = (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];

  if ($way eq 'postmaster')
  {
    $node->kill9;
    $kills{$way}++;
  }
  elsif ($way eq 'immediate')
  {
    $node->stop('immediate');
    $kills{$way}++;
  }
  else
  {
    return 0 unless kill 'KILL', $pid;
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
  return 1;
}

# One that is there and lives; waits for it.
sub pid_of
{
  my ($type) = @_;
  return wait_for("a $type", sub {
    ($monitor->selectrow_array(
        'SELECT pid FROM pg_stat_activity WHERE backend_type = ? ORDER BY random() LIMIT 1', undef, $type))[0] });
}

sub finished
{
  return ($monitor->selectrow_array('SELECT count(*) FROM coord_internal.saga_archive'))[0];
}

my @ways = (('worker') x 9, ('postmaster') x 3, ('immediate') x 3, 'launcher');
my $gate = 0;
foreach my $n (1 .. $wanted_kills)
{
  my $way = $n <= 4 ? (qw(worker postmaster immediate launcher))[ $n - 1 ] : $ways[ rand @ways ];

  if ($n % 3 == 0)
  {
    # In the middle of a step, for sure.
    my $name = $n % 2 ? 'gate' : 'gate_back';
    my $holder = connect_surely('app');
    $gate++;
    $holder->begin_work;
    my ($id) = $holder->selectrow_array('SELECT coord.saga_start(?, ?, key => ?, priority => 10)', undef,
      $name, pick_input(), "gate-$gate");
    $holder->do('SELECT pg_advisory_lock(4711, $1)', undef, $id);
    $holder->commit;
    my $pid = wait_for('a worker at the gate', sub {
      ($monitor->selectrow_array(q{
          SELECT w.pid FROM coord.workers w JOIN pg_locks l USING (pid)
          WHERE w.saga_id = ? AND w.step = 'gated' AND w.phase = ?
            AND l.locktype = 'advisory' AND NOT l.granted AND l.classid = 4711}, undef,
          $id, $name eq 'gate' ? 'action' : 'compensation'))[0] });
    $way = 'worker' if $way eq 'launcher';
    $in_step++ if strike($way, $pid);
    eval { $holder->disconnect };
    next;
  }

  my $before = finished();
  wait_for('progress', sub { finished() > $before });
  sleep rand 0.1;
  my $pid = $way eq 'worker' || $way eq 'launcher' ? pid_of("coord $way") : 0;
  redo unless strike($way, $pid);
}

# Clients end, and what they began comes to its end.
append_to_file($stop_file, '');
foreach my $pid (@pids)
{
  waitpid $pid, 0;
  is($?, 0, 'client ended well');
}
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM coord_internal.saga'), 'every saga is finished')
  or diag $node->safe_psql('postgres', 'SELECT name, status, error, min(wake_at), now(), count(*) FROM coord.sagas WHERE finished_at IS NULL GROUP BY 1, 2, 3 LIMIT 20');

my $total = 0;
$total += $_ foreach values %kills;
cmp_ok($total, '>=', $wanted_kills, "$total kills");
cmp_ok($wanted_kills, '>=', 30, 'enough of them');
cmp_ok($in_step, '>=', 5, "$in_step of them in the middle of a step");
cmp_ok($kills{$_}, '>', 0, "$kills{$_} of kind $_") foreach sort keys %kills;

### The ledger

my %known;
my $started = 0;
foreach my $number (1 .. $clients)
{
  foreach my $line (split /\n/, slurp_file("$dir/client$number"))
  {
    fail("client $number: $line") if $line =~ /^ERROR/;
    my ($key, $id) = split / /, $line;
    $known{$key} = $id;
    $started++;
  }
}
cmp_ok($started, '>=', 1000, "$started sagas were started by clients");

my $sagas = $monitor->selectall_arrayref('SELECT key, id FROM coord.sagas ORDER BY id');
my @wrong = grep { ($known{ $_->[0] } // 0) != $_->[1] } grep { $_->[0] !~ /^gate-/ } @$sagas;
is_deeply(\@wrong, [], 'no saga that nobody was told of, and none under another id');
is(scalar(@$sagas), $started + $gate, 'every acknowledged saga is there, once');

sub nothing
{
  my ($query, $what) = @_;
  is($node->safe_psql('postgres', "$query LIMIT 10"), '', $what);
}

is($node->safe_psql('postgres', q{SELECT count(DISTINCT name) FROM coord.sagas}),
  7, 'every kind of saga was there');
nothing(q{SELECT s.name, s.status, s.id, s.error FROM coord.sagas s
          WHERE s.status <> (SELECT min(e.status) FROM expected e WHERE e.name = s.name)},
  'each ended as it had to');
nothing(q{SELECT coalesce(s.id, l.saga), s.name, coalesce(s.step, l.step), coalesce(s.kind, l.kind), l.count
          FROM (SELECT id, name, e.step, e.kind FROM coord.sagas JOIN expected e USING (name)) s
          FULL JOIN (SELECT saga, step, kind, count(*) FROM ledger GROUP BY 1, 2, 3) l
            ON (l.saga, l.step, l.kind) = (s.id, s.step, s.kind)
          WHERE l.count IS DISTINCT FROM 1 OR s.id IS NULL},
  'each effect and each compensation exactly once, and no other');
nothing(q{SELECT s.saga_id, s.step, s.status FROM coord.saga_steps s
          WHERE (s.status IN ('completed', 'compensated'))
                IS DISTINCT FROM EXISTS (SELECT FROM ledger l WHERE l.saga = s.saga_id AND l.step = s.step AND l.kind = 'do')
             OR (s.status = 'compensated')
                IS DISTINCT FROM EXISTS (SELECT FROM ledger l WHERE l.saga = s.saga_id AND l.step = s.step AND l.kind = 'undo')},
  'what the steps say is what the ledger says');
nothing(q{SELECT coalesce(o.key, s.key), o.saga, s.id FROM orders o
          FULL JOIN (SELECT key, id FROM coord.sagas WHERE name NOT IN ('bulk', 'gate', 'gate_back')) s
            ON s.key = o.key AND s.id = o.saga
          WHERE o.key IS NULL OR s.key IS NULL},
  'start and its transaction: both or neither');
nothing(q{SELECT key FROM coord_internal.saga_key WHERE key LIKE 'undone-%'}, 'nothing of what was rolled back');
is($node->safe_psql('postgres', 'SELECT sum(balance) FROM account'), $money, 'sum of money');
nothing(q{SELECT a.id, a.balance FROM account a
          WHERE a.balance <> 1000000 + (SELECT coalesce(sum(amount), 0) FROM ledger l WHERE l.account = a.id)},
  'each balance is what the ledger says');
nothing('SELECT * FROM coord.stuck', 'nothing is stuck');
nothing('SELECT saga_id FROM coord_internal.saga_step', 'no steps are left in the hot table');
nothing('SELECT saga_id FROM coord_internal.saga_request', 'no requests are left');

### A step that kills its server, again and again

my $seen = -s $node->logfile;

sub crashes
{
  my @all = slurp_file($node->logfile, $seen) =~ /was terminated by signal 9/g;
  return scalar @all;
}

$node->safe_psql('postgres', q{
CREATE FUNCTION crash(doc jsonb) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  PERFORM book(doc, 'do', 0, 0);
  EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -9 ' || pg_backend_pid());
END $$;
CREATE FUNCTION sleep(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM book(doc, 'do', 0, 0); PERFORM pg_sleep(0.05); END $$;
SET ROLE app;
SELECT coord.saga_define('crash', ARRAY[
  coord.step('first', 'mark', 'unmark'),
  coord.step('crash', 'crash', max_attempts => 3, retry_delay => '10 ms')]);
SELECT coord.saga_define('crash_back', ARRAY[
  coord.step('first', 'mark', 'crash', max_attempts => 2, retry_delay => '10 ms'),
  coord.step('last', 'mark_and_refuse')]);
SELECT coord.saga_define('neighbour', ARRAY[coord.step('first', 'sleep', max_attempts => 3), coord.step('last', 'mark')]);
});

# Alone, among many that are short.
my $id = $node->safe_psql('postgres', q{
SET ROLE app;
WITH n AS MATERIALIZED (SELECT coord.saga_start('bulk', key => 'before-' || g) FROM generate_series(1, 100) g),
     c AS MATERIALIZED (SELECT coord.saga_start('crash') AS id FROM (SELECT count(*) FROM n) n),
     m AS MATERIALIZED (SELECT coord.saga_start('bulk', key => 'after-' || g) FROM c, generate_series(1, 100) g)
SELECT id FROM c, (SELECT count(*) FROM m) m});
my $finished = sub { $monitor = connect_surely($superuser);
  my $is = eval { ($monitor->selectrow_array("SELECT count(*) = 0 FROM coord_internal.saga WHERE status <> 'suspended'"))[0] };
  eval { $monitor->disconnect };
  return crashes() > 12 || $is };
wait_for('the crashing saga', $finished);
my $crashed = crashes();
cmp_ok($crashed, '>=', 3, 'it crashed the server in each attempt');
cmp_ok($crashed, '<=', 4, "and then no more: $crashed crashes");
is($node->safe_psql('postgres', "SELECT status, cause FROM coord.sagas WHERE id = $id"),
  'compensated|step_failed', 'it failed, and what was before it is undone');
is($node->safe_psql('postgres', "SELECT step, status, attempt, error IS NOT NULL FROM coord.saga_steps WHERE saga_id = $id ORDER BY ordinal"),
  "first|compensated|1|f\ncrash|failed|3|t", 'its steps');
is($node->safe_psql('postgres', "SELECT step, kind, count(*) FROM ledger WHERE saga = $id GROUP BY 1, 2 ORDER BY 1, 2"),
  "first|do|1\nfirst|undo|1", 'its effects');
is($node->safe_psql('postgres', q{
    SELECT s.status, count(DISTINCT s.id), count(*) FROM coord.sagas s JOIN ledger l ON l.saga = s.id
    WHERE s.key LIKE 'before-%' OR s.key LIKE 'after-%' GROUP BY 1}),
  'completed|200|600', 'its neighbours are well');

# In the midst of slow ones, so that several workers have something in hand at
# each crash: those that are innocent must not run out of attempts.
$seen = -s $node->logfile;
$id = $node->safe_psql('postgres', q{
SET ROLE app;
WITH n AS MATERIALIZED (SELECT coord.saga_start('neighbour', key => 'slow-a' || g) FROM generate_series(1, 30) g),
     c AS MATERIALIZED (SELECT coord.saga_start('crash') AS id FROM (SELECT count(*) FROM n) n),
     m AS MATERIALIZED (SELECT coord.saga_start('neighbour', key => 'slow-b' || g) FROM c, generate_series(1, 30) g)
SELECT id FROM c, (SELECT count(*) FROM m) m});
wait_for('the crashing saga among slow ones', $finished);
$crashed = crashes();
cmp_ok($crashed, '>=', 3, 'among slow ones: it crashed the server in each attempt');
cmp_ok($crashed, '<=', 5, "among slow ones: and then no more: $crashed crashes");
is($node->safe_psql('postgres', "SELECT coord.saga_status($id)"), 'compensated', 'among slow ones: it failed');
is($node->safe_psql('postgres', q{
    SELECT s.status, count(DISTINCT s.id), count(l.saga), s.error FROM coord.sagas s LEFT JOIN ledger l ON l.saga = s.id
    WHERE s.key LIKE 'slow-%' GROUP BY 1, 4}),
  'completed|60|120|', 'slow neighbours are well');

# A compensation that does it: suspended, and repaired by skipping it.
$seen = -s $node->logfile;
$id = $node->safe_psql('postgres', q{SET ROLE app; SELECT coord.saga_start('crash_back')});
wait_for('the saga that crashes in its compensation', $finished);
$crashed = crashes();
cmp_ok($crashed, '>=', 2, 'compensation: it crashed the server in each attempt');
cmp_ok($crashed, '<=', 3, "compensation: and then no more: $crashed crashes");
is($node->safe_psql('postgres', "SELECT coord.saga_status($id)"), 'suspended', 'it is suspended');
is($node->safe_psql('postgres', "SELECT kind, id = '$id' FROM coord.stuck"), 'saga|t', 'and seen in coord.stuck');
$node->safe_psql('postgres', "SELECT coord.saga_skip($id, 'first', reason => 'done by hand')");
ok($node->poll_query_until('postgres', "SELECT coord.saga_status($id) IN ('compensated', 'failed')"), 'repaired by skipping it');
nothing('SELECT * FROM coord.stuck', 'nothing is stuck any more');

unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal (?!9\b)/, 'no other crashes');
$node->stop;
done_testing();
