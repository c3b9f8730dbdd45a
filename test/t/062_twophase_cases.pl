# Two-phase commit in cases that are no crash of a point: what transactions may contain,
# savepoints, timeouts, participants that cannot prepare, and prepared transactions that
# only look like ours.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTwophase;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $p1 = new_participant('p1', allows_streaming => 1);
my $p2 = new_participant('p2', allows_streaming => 1);
my $main = new_coordinator('main', [ $p1, $p2 ], allows_streaming => 1);
my @nodes = ($main, $p1, $p2);
my $total = total(@nodes);
my $number = 0;
my $mark = q{INSERT INTO mark VALUES ($1)};

sub at
{
  my ($node, @sql) = @_;
  my $dbh = reconnect($node);
  $dbh->do($_) foreach @sql;
  $dbh->disconnect;
  return;
}

sub value
{
  my ($node, @query) = @_;
  my $dbh = reconnect($node);
  my $value = one($dbh, @query);
  $dbh->disconnect;
  return $value;
}

sub set_and_wait
{
  my ($node, $setting, $value) = @_;
  at($node, defined $value ? "ALTER SYSTEM SET $setting = '$value'" : "ALTER SYSTEM RESET $setting", 'SELECT pg_reload_conf()');
  my $dbh = reconnect($node);
  is(wait_until($dbh, $value, "SHOW $setting"), $value, "$setting = $value") if defined $value && $value ne '';
  $dbh->disconnect;
  return;
}

# A session with a transfer that is ready to commit, its name and its global id.
sub begin_transfer
{
  my ($node, %settings) = @_;
  my $client = reconnect($node);
  my $name = 'transfer ' . ++$number;
  $client->do("SET $_ = '$settings{$_}'") foreach sort keys %settings;
  $client->do('BEGIN');
  my $gtid = one($client, 'SELECT coord.twophase_current()');
  $client->do('INSERT INTO mark VALUES (?)', undef, $name);
  $client->do('UPDATE acc SET bal = bal - 2 WHERE id = 1');
  one($client, q{SELECT coord.remote_exec(?, 'WITH m AS (INSERT INTO mark VALUES ($1)) UPDATE acc SET bal = bal + 1 WHERE id = 1',
    jsonb_build_array(?::text))}, $_, $name) foreach qw(p1 p2);
  return ($client, $name, $gtid);
}

# The same, with COMMIT under way to a point; also the gate.
sub transfer_at
{
  my ($node, $point, %settings) = @_;
  my @transfer = begin_transfer($node, %settings, 'coord.debug_point' => "wait:$point");
  my $gate = gate_at($node, $point);
  send_async($transfer[0], 'COMMIT');
  ok(wait_at_gate($gate, $point), "a transfer is at $point");
  return (@transfer, $gate);
}

# All or none, the total, and nothing left.
sub ended
{
  my ($what, $name, $expected) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  is(settled(@nodes), '', "$what: nothing is left");
  is(marks($name, @nodes), $expected, "$what: where it happened") if defined $name;
  is(total(@nodes), $total, "$what: the total");
  return;
}

# Nothing happened to our sessions: errors and what comes after.
sub fails
{
  my ($dbh, $pattern, $what, $sql, @values) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  like(error_of($dbh, $sql, @values), $pattern, $what);
  $dbh->do('ROLLBACK');
  return;
}

### Transactions of various kinds

{
  my $dbh = reconnect($main);

  # A transaction that has an id and wrote nothing: its commit record counts.
  $dbh->do('SET synchronous_commit = off');
  $dbh->do(q{SET coord.debug_point = 'wait:twophase_committed'});
  my $gate = gate_at($main, 'twophase_committed');
  $dbh->do('BEGIN');
  one($dbh, 'SELECT pg_current_xact_id()');
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', 'p1', $mark, '["xid only"]');
  send_async($dbh, 'COMMIT');
  ok(wait_at_gate($gate, 'twophase_committed'), 'a transaction with an xid only is committed in two phases');
  $main->stop('immediate');
  answer_of($dbh);
  eval { $_->disconnect } foreach $dbh, $gate;
  restart_dead($main);
  ended('a transaction with an xid only, synchronous_commit = off, and a crash', 'xid only', 'p1');

  $dbh = reconnect($main);

  # One that wrote at one participant only goes in one phase, and readers are told COMMIT.
  $dbh->do('BEGIN');
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', 'p1', $mark, '["one writer"]');
  is(one($dbh, q{SELECT coord.remote_query('p2', 'SELECT count(*) AS n FROM acc')}), '{"n": 10}', 'a participant that is read');
  $dbh->do('COMMIT');
  ended('one writer', 'one writer', 'p1');
  is(one($dbh, q{SELECT count(*) FROM coord.twophase_history WHERE event = 'committed'}), 1, 'one writer needs no decision');

  # DDL is a participant's as everything else is.
  $dbh->do('BEGIN');
  one($dbh, q{SELECT coord.remote_exec(?, 'CREATE TABLE made (x int)')}, $_) foreach qw(p1 p2);
  $dbh->do('CREATE TABLE made (x int)');
  $dbh->do('COMMIT');
  is(settled(@nodes), '', 'DDL: nothing is left');
  is(join(' ', map { value($_, q{SELECT to_regclass('made')}) } @nodes), 'made made made', 'DDL on all');
  $dbh->do('BEGIN');
  one($dbh, q{SELECT coord.remote_exec(?, 'DROP TABLE made')}, $_) foreach qw(p1 p2);
  $dbh->do('DROP TABLE made');
  $dbh->do('ROLLBACK');
  is(join(' ', map { value($_, q{SELECT to_regclass('made')}) } @nodes), 'made made made', 'DDL that is rolled back');

  # Local temporary tables and notifications do not hinder: nothing is prepared here.
  $dbh->do('LISTEN heard');
  $dbh->do('BEGIN');
  $dbh->do('CREATE TEMP TABLE own AS SELECT 1 AS x');
  $dbh->do('NOTIFY heard');
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, '["local temp"]') foreach qw(p1 p2);
  $dbh->do('COMMIT');
  ended('a local temporary table and NOTIFY', 'local temp', 'p1 p2');
  is($dbh->func('pg_notifies')->[0], 'heard', 'the notification has come');

  # Over there they do, except where there is one phase.
  foreach ([ 'a temporary table', 'CREATE TEMP TABLE own AS SELECT 1 AS x' ], [ 'NOTIFY', 'NOTIFY heard' ])
  {
    my ($what, $sql) = @$_;
    $dbh->do('BEGIN');
    one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, qq{["$what"]}) foreach qw(p1 p2);
    one($dbh, 'SELECT coord.remote_exec(?, ?)', 'p2', $sql);
    fails($dbh, qr/^ZC010 participant "p2": cannot PREPARE.*0A000/s, "$what at a participant: refused", 'COMMIT');
    ended("$what at a participant", $what, '');
    $dbh->do('BEGIN');
    one($dbh, 'SELECT coord.remote_exec(?, ?)', 'p2', $sql);
    is(error_of($dbh, 'COMMIT'), 'no error', "$what at the only participant");
  }
  is(one($dbh, q{SELECT coord.remote_query('p2', $$SELECT to_regclass('pg_temp.own') AS own$$)}), '{"own": null}',
    'a temporary table does not reach the next transaction');

  # Isolation levels go along.
  foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
  {
    $dbh->do("BEGIN ISOLATION LEVEL $level");
    is(one($dbh, q{SELECT coord.remote_query('p1', 'SHOW transaction_isolation') ->> 'transaction_isolation'}), lc $level,
      "$level at the participant");
    $dbh->do('COMMIT');
  }

  # Write skew at a participant, between a transaction of ours and one of its own.
  my $other = reconnect($p1);
  $_->do('BEGIN ISOLATION LEVEL SERIALIZABLE') foreach $dbh, $other;
  one($dbh, q{SELECT coord.remote_query('p1', 'SELECT sum(bal) AS s FROM acc WHERE id = 5')});
  one($other, 'SELECT sum(bal) FROM acc WHERE id = 6');
  one($dbh, q{SELECT coord.remote_exec('p1', 'UPDATE acc SET bal = bal WHERE id = 6')});
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', 'p2', $mark, '["skew"]');
  $other->do('UPDATE acc SET bal = bal WHERE id = 5');
  $other->do('COMMIT');
  fails($dbh, qr/^ZC010 participant "p1": could not serialize.*40001/s, 'SERIALIZABLE: a participant says 40001', 'COMMIT');
  ended('a serialization failure at a participant', 'skew', '');

  # And between two of ours that are prepared.
  my $second = reconnect($main);
  $_->do('BEGIN ISOLATION LEVEL SERIALIZABLE') foreach $dbh, $second;
  one($_, q{SELECT coord.remote_query('p1', 'SELECT sum(bal) AS s FROM acc WHERE id IN (5, 6)')}) foreach $dbh, $second;
  one($dbh, q{SELECT coord.remote_exec('p1', 'UPDATE acc SET bal = bal WHERE id = 6')});
  one($second, q{SELECT coord.remote_exec('p1', 'UPDATE acc SET bal = bal WHERE id = 5')});
  is(error_of($dbh, 'COMMIT'), 'no error', 'SERIALIZABLE: the first commits');
  fails($second, qr/^ZC010 .*40001/s, 'SERIALIZABLE: the second does not', 'COMMIT');
  $second->disconnect;
  $other->disconnect;

  # Savepoints and exception blocks.
  $dbh->do('BEGIN');
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, '["kept"]') foreach qw(p1 p2);
  $dbh->do('SAVEPOINT a');
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, '["undone"]') foreach qw(p1 p2);
  $dbh->do('SAVEPOINT b');
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', 'p2', $mark, '["undone deeper"]');
  $dbh->do('ROLLBACK TO a');
  $dbh->do('SAVEPOINT c');
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', 'p2', $mark, '["released"]');
  $dbh->do('RELEASE c');
  $dbh->do(q{DO $x$ BEGIN
      FOR i IN 1 .. 3 LOOP
        BEGIN
          PERFORM coord.remote_exec('p1', 'INSERT INTO mark VALUES ($1)', jsonb_build_array('block ' || i));
          IF i = 2 THEN RAISE EXCEPTION 'no'; END IF;
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
      END LOOP;
      BEGIN
        PERFORM coord.remote_exec('p2', 'SELECT 1 / 0');
      EXCEPTION WHEN OTHERS THEN NULL;
      END;
    END $x$});
  $dbh->do('COMMIT');
  is(settled(@nodes), '', 'savepoints: nothing is left');
  is(value($_->[0], q{SELECT string_agg(name, ',' ORDER BY name) FROM mark WHERE name ~ '^(kept|undone|released|block)'}), $_->[1],
    'savepoints at ' . $_->[0]->name)
    foreach [ $p1, 'block 1,block 3,kept' ], [ $p2, 'kept,released' ];

  # What the user may not do.
  $dbh->do('BEGIN');
  $dbh->do(q{INSERT INTO mark VALUES ('prepared here')});
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, '["prepared here"]') foreach qw(p1 p2);
  fails($dbh, qr/^(0A000|55000) /, 'PREPARE TRANSACTION is refused', q{PREPARE TRANSACTION 'mine'});
  ended('PREPARE TRANSACTION by the user', 'prepared here', '');
  foreach ('COMMIT', 'ROLLBACK', 'SAVEPOINT x', q{PREPARE TRANSACTION 'x'}, '/* x */ end', 'COPY acc TO STDOUT')
  {
    $dbh->do('BEGIN');
    fails($dbh, qr/^0A000 /, "$_ at a participant is refused", 'SELECT coord.remote_exec(?, ?)', 'p1', $_);
  }
  $dbh->do('BEGIN');
  fails($dbh, qr/^25001 .*HINT/s, 'twophase_run() in a transaction is refused',
    'CALL coord.twophase_run(' . transfer_branches('x', 'p1', 'p2') . ')');

  # Time.
  $dbh->do(q{SET statement_timeout = '300ms'});
  $dbh->do('BEGIN');
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', 'p1', $mark, '["too long"]');
  fails($dbh, qr/^57014 /, 'statement_timeout bounds a statement', q{SELECT coord.remote_exec('p2', 'SELECT pg_sleep(600)')});
  $dbh->do('RESET statement_timeout');
  ended('statement_timeout', 'too long', '');
  is(value($p2, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ 'pg_sleep\(600' AND state = 'active' AND pid <> pg_backend_pid()}), 0,
    'it is cancelled at the participant');
  $dbh->do('BEGIN');
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', 'p1', $mark, '["too long"]');
  fails($dbh, qr/^ZC010 participant "p2" did not answer in time/, 'the timeout of a call',
    q{SELECT coord.remote_exec('p2', 'SELECT pg_sleep(600)', timeout => '200 ms')});
  ended('the timeout of a call', 'too long', '');

  # A deadlock over two clusters ends.
  my $third = reconnect($main);
  $_->do(q{SET coord.twophase_lock_timeout = '300ms'}) foreach $dbh, $third;
  $_->do('BEGIN') foreach $dbh, $third;
  one($dbh, q{SELECT coord.remote_exec('p1', 'UPDATE acc SET bal = bal WHERE id = 7')});
  one($third, q{SELECT coord.remote_exec('p2', 'UPDATE acc SET bal = bal WHERE id = 7')});
  send_async($dbh, q{SELECT coord.remote_exec('p2', 'UPDATE acc SET bal = bal WHERE id = 7')});
  send_async($third, q{SELECT coord.remote_exec('p1', 'UPDATE acc SET bal = bal WHERE id = 7')});
  my @answers = map { answer_of($_) } $dbh, $third;
  ok(scalar(grep { /^ZC010 .*55P03/s } @answers), 'a deadlock over two clusters ends by lock_timeout') or diag(@answers);
  $_->do('ROLLBACK') foreach $dbh, $third;
  $third->disconnect;

  # statement_timeout does not bound the commit, which bounds itself.
  my ($client, $name, $gtid, $gate2) = transfer_at($main, 'twophase_prepared', statement_timeout => '100ms');
  my $watch = reconnect($main);
  is(one($watch, 'SELECT coord.twophase_outcome(?)', $gtid), 'pending', 'twophase_outcome() meanwhile');
  is(one($watch, 'SELECT count(*) FROM coord.twophase_active WHERE gtid = ?', $gtid), 1, 'coord.twophase_active meanwhile');
  open_gate($gate2);
  is(answer_of($client), 'ok', 'statement_timeout in COMMIT');
  $_->disconnect foreach $client, $watch;
  ended('statement_timeout in COMMIT', $name, 'main p1 p2');
  $dbh->disconnect;
}

### Participants that cannot prepare, and transactions that are not ours

{
  my $p3 = new_participant('p3', max_prepared_transactions => 0);
  add_server($main, 'p3', $p3);
  my $dbh = reconnect($main);
  foreach (
    [ 'max_prepared_transactions = 0', 0, qr/^ZC010 participant "p3": prepared transactions are disabled.*55000/s ],
    [ 'max_prepared_transactions exhausted', 1, qr/^ZC010 participant "p3": maximum number of prepared transactions reached.*53200/s ])
  {
    my ($what, $max, $error) = @$_;
    if ($max)
    {
      configure($p3, max_prepared_transactions => $max);
      $p3->restart;
      at($p3, 'BEGIN', q{INSERT INTO mark VALUES ('foreign')}, q{PREPARE TRANSACTION 'foreign'});
    }
    $dbh->do('BEGIN');
    one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, qq{["$what"]}) foreach qw(p1 p3);
    fails($dbh, $error, "$what: the error", 'COMMIT');
    fails($dbh, $error, "$what: the error of twophase_run()", 'CALL coord.twophase_run(' . transfer_branches($what, 'p1', 'p3') . ')');
    is(settled($main, $p1, $p3), '', "$what: nothing is left");
    is(marks($what, $main, $p1, $p3), '', "$what: none");
  }
  at($p3, q{COMMIT PREPARED 'foreign'});
  $dbh->do('BEGIN');
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, '["room again"]') foreach qw(p1 p3);
  $dbh->do('COMMIT');
  is(settled($main, $p1, $p3), '', 'room again: nothing is left');
  is(marks('room again', $main, $p1, $p3), 'p1 p3', 'room again: all');
  $p3->stop;

  # What looks like ours and is not: another cluster's; another database's of this one,
  # by name, and by where it was prepared.
  my $cluster = one($dbh, q{SELECT replace(id::text, '-', '') FROM coord_internal.twophase_cluster});
  my $incarnation = one($dbh, 'SELECT incarnation FROM coord_internal.twophase_figures()');
  $dbh->do('BEGIN');
  my $gtid = one($dbh, 'SELECT coord.twophase_current()');
  $dbh->do('ROLLBACK');
  my $database = one($dbh, 'SELECT oid FROM pg_database WHERE datname = current_database()');
  my $of = sub { "coord:$_[0]:$_[1]:$incarnation:$gtid:1/2:1.1" };
  at($p1, 'CREATE DATABASE elsewhere');
  my $elsewhere = reconnect($p1, 'elsewhere');
  my @foreign = ('somebody', 'coord:', 'coord:x:1', $of->('0' x 32, $database), $of->($cluster, $database + 1),
    $of->($cluster, $database) . ' ', $of->($cluster, "0$database"));
  at($p1, 'BEGIN', 'CREATE TABLE t' . (++$number) . ' ()', "PREPARE TRANSACTION '$_'") foreach @foreign;
  $elsewhere->do($_) foreach 'BEGIN', 'CREATE TABLE t ()', "PREPARE TRANSACTION '" . $of->($cluster, $database) . "'";
  is(one($dbh, q{SELECT count(*) FROM coord.twophase_resolve() WHERE action <> 'failed'}), 0, "foreign transactions: the resolver has nothing to do");
  is(one($dbh, 'SELECT count(*) FROM coord.twophase_in_doubt'), 0, 'foreign transactions: nothing is in doubt');
  is(value($p1, 'SELECT count(*) FROM pg_prepared_xacts'), @foreign + 1, 'foreign transactions are left alone');

  # In the right place the name is ours, and its transaction was not committed.
  my $stray = $of->($cluster, $database);
  $elsewhere->do("ROLLBACK PREPARED '$stray'");
  at($p1, 'BEGIN', 'CREATE TABLE t ()', "PREPARE TRANSACTION '$stray'");
  is(one($dbh, q{SELECT action FROM coord.twophase_resolve('p1') WHERE gid = ?}, $stray), 'rolled back', 'one of ours is rolled back');
  at($p1, map { "ROLLBACK PREPARED '$_'" } @foreign);
  $elsewhere->disconnect;

  # A second database here with a participant there.
  $dbh->do('CREATE DATABASE second');
  my $second = reconnect($main, 'second');
  $second->do($_) foreach 'CREATE EXTENSION postgres_fdw', 'CREATE EXTENSION coord', 'CREATE TABLE mark (name text)',
    sprintf(q{CREATE SERVER p1 FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '%s', port '%d', dbname 'postgres')}, $p1->host, $p1->port),
    'CREATE USER MAPPING FOR CURRENT_USER SERVER p1', q{SET coord.debug_point = 'wait:twophase_prepared'}, 'BEGIN',
    q{INSERT INTO mark VALUES ('second')};
  one($second, 'SELECT coord.remote_exec(?, ?, ?)', 'p1', $mark, '["second"]');
  my $gate = reconnect($main, 'second');
  one($gate, q{SELECT pg_advisory_lock(?, hashtext('twophase_prepared'))}, DEBUG_CLASS);
  send_async($second, 'COMMIT');
  ok(wait_at_gate($gate, 'twophase_prepared'), 'another database has something prepared');
  one($dbh, q{SELECT count(*) FROM coord.twophase_resolve('p1')});
  is(our_gids($p1), 1, 'another database\'s is left alone');
  open_gate($gate);
  is(answer_of($second), 'ok', 'and commits');
  is(marks('second', $p1), 'p1', 'and is there');
  $second->disconnect;
  $dbh->disconnect;
  is(settled(@nodes), '', 'another database: nothing is left');
}

$_->stop foreach @nodes;
done_testing();
