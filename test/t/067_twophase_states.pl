# Two-phase commit when the coordinator may not act, or a participant is not what it was:
# standby, copy, pause, no launcher; a changed mapping, a restored participant, a network
# that swallows.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTwophase;
use DelayProxy;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $p1 = new_participant('p1', allows_streaming => 1);
my $p2 = new_participant('p2', allows_streaming => 1);
my $main = new_coordinator('main', [ $p1, $p2 ], allows_streaming => 1);
my @nodes = ($main, $p1, $p2);
my $mark = 'INSERT INTO mark VALUES ($1)';
my $exec = q{SELECT coord.remote_exec('p1', 'SELECT 1')};
my $number = 0;

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

sub refused
{
  my ($node, $pattern, $what, $database) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  my $dbh = reconnect($node, $database);
  like(error_of($dbh, $exec), $pattern, $what);
  $dbh->disconnect;
  return;
}

# A transfer over both, by COMMIT: its name, and what the client saw.
sub transfer
{
  my ($client, @servers) = @_;
  @servers = qw(p1 p2) if !@servers;
  my $name = 'transfer ' . ++$number;
  $client->do('BEGIN');
  $client->do('INSERT INTO mark VALUES (?)', undef, $name);
  one($client, 'SELECT coord.remote_exec(?, ?, jsonb_build_array(?::text))', $_, $mark, $name) foreach @servers;
  my $answer = error_of($client, 'COMMIT');
  return ($name, $answer);
}

# One that has been decided, and then its session is killed, the server restarts, and
# what happens in between is the caller's.
sub leave_decided
{
  my ($between) = @_;
  my $client = reconnect($main);
  my $name = 'transfer ' . ++$number;
  my $gate = gate_at($main, 'twophase_committed');
  $client->do(q{SET coord.debug_point = 'wait:twophase_committed'});
  $client->do('BEGIN');
  $client->do('INSERT INTO mark VALUES (?)', undef, $name);
  one($client, 'SELECT coord.remote_exec(?, ?, jsonb_build_array(?::text))', $_, $mark, $name) foreach qw(p1 p2);
  send_async($client, 'COMMIT');
  ok(wait_at_gate($gate, 'twophase_committed'), "$name is decided");
  $main->stop('immediate');
  answer_of($client);
  open_gate($gate);
  $between->() if $between;
  restart_dead($main);
  return $name;
}

{
  my $client = reconnect($main);
  my ($name, $answer) = transfer($client);
  is($answer, 'no error', 'a transfer');
  is(settled(@nodes), '', 'nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'where it happened');

  # A parallel query; its workers cannot have participants.
  $client->do(q{CREATE FUNCTION smuggled() RETURNS bigint LANGUAGE sql PARALLEL SAFE AS $$ SELECT coord.remote_exec('p1', 'SELECT 1') $$});
  $client->do(q{SET } . (one($client, q{SELECT count(*) FROM pg_settings WHERE name = 'debug_parallel_query'}) ? 'debug_parallel_query' : 'force_parallel_mode') . ' = on');
  like(error_of($client, 'SELECT smuggled()'), qr/^25000 (participants cannot be used during a parallel operation|cannot )/, 'not in a parallel worker');
  $client->disconnect;
}

### A standby

{
  $main->backup('standby');
  my $standby = PostgreSQL::Test::Cluster->new('standby');
  $standby->init_from_backup($main, 'standby', has_streaming => 1);
  $standby->start;
  my $dbh = reconnect($standby);
  like(error_of($dbh, $_), qr/^25006 /, "$_ on a standby")
    foreach $exec, q{SELECT coord.twophase_current()}, q{SELECT count(*) FROM coord.twophase_resolve()}, q{SELECT coord.twophase_begin()},
    q{CALL coord.twophase_run(ARRAY[coord.branch('p1', 'SELECT 1')])}, q{SELECT coord.twophase_adopt(1, 'why')};
  is(one($dbh, 'SELECT count(*) FROM coord.twophase_history WHERE event = ?', 'committed') > 0, 1, 'the history can be read there');
  is(one($dbh, "SELECT count(*) FROM coord.twophase_$_"), 0, "coord.twophase_$_ too") foreach qw(active in_doubt);
  $dbh->disconnect;
  $standby->stop('immediate');
}

### Paused, and off

{
  at($main, q{SELECT coord.pause('maintenance')});
  my $client = reconnect($main);
  my ($name, $answer) = transfer($client);
  is($answer, 'no error', 'paused: transactions go on');
  is(marks($name, @nodes), 'main p1 p2', 'and commit at all');
  $client->disconnect;
  $name = leave_decided();
  my $dbh = reconnect($main);
  is(wait_until($dbh, 0, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord resolver'}), 0, 'paused: no resolver stays');
  is(our_gids($_), 1, 'paused: nothing is resolved at ' . $_->name) foreach $p1, $p2;
  one($dbh, 'SELECT coord.resume()');
  $dbh->disconnect;
  is(settled(@nodes), '', 'resumed: nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'it is committed at all');

  $name = leave_decided(sub { append_to_file($main->data_dir . '/postgresql.conf', "coord.enabled = off\n") });
  refused($main, qr/^55000 /, 'off: participants are refused after a start');
  is(our_gids($_), 1, 'off: nothing is resolved at ' . $_->name) foreach $p1, $p2;
  append_to_file($main->data_dir . '/postgresql.conf', "coord.enabled = on\n");
  $main->reload;
  is(settled(@nodes), '', 'on again: nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'it is committed at all');
}

### A copy

{
  at($main, 'CREATE DATABASE copy TEMPLATE postgres');
  refused($main, qr/^55000 this database is a copy.*coord\.resume\(\)/s, 'a copy is refused', 'copy');
  my $dbh = reconnect($main, 'copy');
  one($dbh, 'SELECT coord.resume()');
  is(one($dbh, $exec), 1, 'resumed it has participants');
  $dbh->do('BEGIN');
  one($dbh, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, '["of the copy"]') foreach qw(p1 p2);
  $dbh->do('COMMIT');
  is(marks('of the copy', $p1, $p2), 'p1 p2', 'and commits');
  $dbh->disconnect;
  at($main, 'DROP DATABASE copy');
}

### A mapping that changes, DROP

{
  my $name = leave_decided(sub {
    $p1->safe_psql('postgres', q{SET password_encryption = 'scram-sha-256'; CREATE ROLE changed LOGIN PASSWORD 'right'});
  });
  is(settled(@nodes), '', 'a transfer is left and found');
  my $gate = gate_at($main, 'twophase_committed');
  my $client = reconnect($main);
  $client->do(q{SET coord.debug_point = 'wait:twophase_committed'});
  $client->do('BEGIN');
  one($client, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, '["mapping"]') foreach qw(p1 p2);
  send_async($client, 'COMMIT');
  ok(wait_at_gate($gate, 'twophase_committed'), 'F25: a transaction is decided');
  my $dbh = reconnect($main);
  $dbh->do(q{SET lock_timeout = '300ms'});
  like(error_of($dbh, 'DROP SERVER p1 CASCADE'), qr/^(2BP01|55P03) /, 'F25: its server is not dropped');
  like(error_of($dbh, 'DROP USER MAPPING FOR CURRENT_USER SERVER p2'), qr/^(2BP01|55P03) /, 'F25: nor its mapping');
  like(error_of($dbh, 'DROP EXTENSION coord'), qr/^2BP01 .*not finished/s, 'F25: nor the extension');
  $dbh->disconnect;
  $main->stop('immediate');
  answer_of($client);
  open_gate($gate);
  $p1->stop('immediate');
  restart_dead($main);
  $dbh = reconnect($main);
  # As a role that p1 does not know: the look fails, and says why.
  $dbh->do(q{ALTER USER MAPPING FOR CURRENT_USER SERVER p1 OPTIONS (ADD user 'nobody')});
  restart_dead($p1);
  is(wait_until($dbh, 1, q{SELECT count(*) FROM coord.twophase_servers WHERE server_name = 'p1' AND error ~ 'nobody'}), 1,
    'F25: coord.twophase_servers says what is wrong with a mapping');
  is(one($dbh, q{SELECT error ~ 'does not exist' FROM coord.twophase_check('p1') c(s, n, ok, error) WHERE NOT ok LIMIT 1}), 1, 'F25: so does twophase_check()');
  is(our_gids($p1), 1, 'F25: it is left there');
  $dbh->do(q{ALTER USER MAPPING FOR CURRENT_USER SERVER p1 OPTIONS (DROP user)});
  is(settled(@nodes), '', 'F25: mended, nothing is left');
  is(marks('mapping', $p1, $p2), 'p1 p2', 'F25: it has happened at both');
  $dbh->disconnect;
}

### Two who look at the same time

{
  my $gate = gate_at($main, 'resolver_before_action');
  my $name = leave_decided(sub {
    append_to_file($main->data_dir . '/postgresql.conf', "coord.debug_point = 'wait:resolver_before_action'\n");
  });
  eval { $gate->disconnect };
  is(settled(@nodes), '', 'F27: nothing is left');
  append_to_file($main->data_dir . '/postgresql.conf', "coord.debug_point = ''\n");
  $main->reload;
  is(marks($name, @nodes), 'main p1 p2', 'F27: it has happened everywhere');

  $name = leave_decided();
  my @sessions = map { reconnect($main) } 1 .. 3;
  send_async($_, 'SELECT count(*) FROM coord.twophase_resolve()') foreach @sessions;
  is(answer_of($_), 'ok', 'F27: coord.twophase_resolve() beside the resolver') foreach @sessions;
  is(settled(@nodes), '', 'F27: nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'F27: it has happened everywhere');
  $_->disconnect foreach @sessions;
}

### A participant that is restored from a backup with an old name in it

{
  my $client = reconnect($main);
  my $gate = gate_at($main, 'twophase_committed');
  $client->do(q{SET coord.debug_point = 'wait:twophase_committed'});
  $client->do('BEGIN');
  one($client, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, '["backup"]') foreach qw(p1 p2);
  send_async($client, 'COMMIT');
  ok(wait_at_gate($gate, 'twophase_committed'), 'F24: a transaction is decided');
  $p1->backup('with it');
  open_gate($gate);
  is(answer_of($client), 'ok', 'F24: and committed');
  is(settled(@nodes), '', 'F24: nothing is left');
  $client->disconnect;
  my $restored = PostgreSQL::Test::Cluster->new('restored');
  $restored->init_from_backup($p1, 'with it');
  $restored->start;
  is(our_gids($restored), 1, 'F24: it is in the backup');
  my ($host, $port) = ($restored->host, $restored->port);
  at($main, "ALTER SERVER p1 OPTIONS (SET host '$host', SET port '$port')");
  one(reconnect($main), q{SELECT count(*) FROM coord.twophase_resolve('p1')});
  is(our_gids($restored), 0, 'F24: within the retention it is brought up to the decision');
  is(marks('backup', $restored), 'restored', 'F24: it has happened there');
  $restored->stop('immediate');
  ($host, $port) = ($p1->host, $p1->port);
  at($main, "ALTER SERVER p1 OPTIONS (SET host '$host', SET port '$port')");
}

### A network that swallows, and that closes half

{
  my $proxy = DelayProxy->new($p1);
  add_server($main, 'far', $p1, host => $proxy->host, port => $proxy->port);
  my $client = reconnect($main);
  $client->do(q{SET coord.twophase_prepare_timeout = '700ms'; SET coord.twophase_phase2_timeout = '700ms'});
  my ($name, $answer) = transfer($client, 'far', 'p2');
  is($answer, 'no error', 'through the proxy');

  $proxy->tell('on reply hang/1 PREPARE TRANSACTION');
  my $seconds = seconds { ($name, $answer) = transfer($client, 'far', 'p2') };
  like($answer, qr/^ZC010 participant "far"/, 'the answer to PREPARE is swallowed: an error');
  cmp_ok($seconds, '<', 20, 'within the timeouts');
  $proxy->tell('off');
  $proxy->tell('drop');
  is(settled(@nodes), '', 'nothing is left');
  is(marks($name, @nodes), '', 'none');

  $client->do('ROLLBACK');
  ($name, $answer) = transfer($client, 'far', 'p2');
  is($answer, 'no error', 'then it works again');
  $proxy->tell('on reply hang/1 COMMIT PREPARED');
  $seconds = seconds { ($name, $answer) = transfer($client, 'far', 'p2') };
  is($answer, 'no error', 'the answer to COMMIT PREPARED is swallowed: COMMIT');
  cmp_ok($seconds, '<', 20, 'within the timeouts');
  $proxy->tell('off');
  is(settled(@nodes), '', 'nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'all');

  foreach my $side (qw(client server))
  {
    $client->do('BEGIN');
    $client->do('INSERT INTO mark VALUES (?)', undef, "half $side");
    one($client, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, qq{["half $side"]}) foreach qw(far p2);
    $proxy->tell("halfclose $side");
    $answer = error_of($client, 'COMMIT');
    like($answer, qr/^ZC010 participant "far"/, "closed towards the $side: an error");
    is(settled(@nodes), '', 'nothing is left');
    is(marks("half $side", @nodes), '', 'none');
  }
  $client->do('ROLLBACK');
  is((transfer($client, 'far', 'p2'))[1], 'no error', 'then it works again');
  $client->disconnect;
}

### No launcher

{
  $main->stop;
  append_to_file($main->data_dir . '/postgresql.conf', "shared_preload_libraries = ''\n");
  $main->start;
  refused($main, qr/^55000 coord's launcher is not running.*shared_preload_libraries/s, 'without preload participants are refused');
  $main->stop;
}
unlike(slurp_file($main->logfile), qr/PANIC|TRAP:/, 'nothing worse than that in the log');
$_->stop foreach $p1, $p2;
done_testing();
