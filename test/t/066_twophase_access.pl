# Who may reach a participant, what others see of it, PgBouncer on either side, and
# what coord refuses because it could not be atomic.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTwophase;
use DelayProxy;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $p1 = new_participant('p1');
my $p2 = new_participant('p2');
my $main = new_coordinator('main', [ $p1, $p2 ], 'coord.twophase_retention' => '1d',
  log_statement => 'none', log_min_duration_statement => -1);
my @nodes = ($main, $p1, $p2);
my $dbh = reconnect($main);
my $socket = $p1->host;
my $mark = 'INSERT INTO mark VALUES ($1)';

# At the participants "remote" is asked for its password, everybody else is not.
foreach my $node ($p1, $p2)
{
  $node->safe_psql('postgres', q{SET password_encryption = 'scram-sha-256'; CREATE ROLE remote LOGIN PASSWORD 'geheim-1';
    CREATE ROLE trusted LOGIN; GRANT ALL ON acc, mark TO remote, trusted});
  my $file = $node->data_dir . '/pg_hba.conf';
  my $before = slurp_file($file);
  unlink $file;
  append_to_file($file, "local all remote scram-sha-256\n$before");
  $node->reload;
}
my ($port1, $port2) = map { $_->port } $p1, $p2;
$main->safe_psql('postgres', qq{
  CREATE ROLE app LOGIN; CREATE ROLE other LOGIN; CREATE ROLE watcher LOGIN; CREATE ROLE boss LOGIN;
  GRANT coord_user TO app, other; GRANT coord_reader, pg_monitor TO watcher; GRANT coord_admin TO boss;
  GRANT ALL ON acc, mark TO app, other;
  CREATE SERVER s1 FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$socket', port '$port1', dbname 'postgres');
  CREATE SERVER s2 FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$socket', port '$port2', dbname 'postgres');
  GRANT USAGE ON FOREIGN SERVER s1, s2 TO app;
  CREATE USER MAPPING FOR app SERVER s1 OPTIONS (user 'remote', password 'geheim-1');
  CREATE USER MAPPING FOR app SERVER s2 OPTIONS (user 'remote', password 'geheim-1')});
my $app = session($main, 'postgres', user => 'app');
my $other = session($main, 'postgres', user => 'other');

### A password

{
  $app->do('BEGIN');
  $app->do(q{INSERT INTO mark VALUES ('by app')});
  one($app, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, '["by app"]') foreach qw(s1 s2);
  $app->do('COMMIT');
  is(marks('by app', @nodes), 'main p1 p2', 'a role with passwords commits at all');
  $app->do(q{CALL coord.twophase_run(ARRAY[coord.branch('s1', $$INSERT INTO mark VALUES ('run by app')$$),
    coord.branch('s2', $$INSERT INTO mark VALUES ('run by app')$$)])});
  is(marks('run by app', @nodes), 'p1 p2', 'and with twophase_run');
  is(one($app, q{SELECT r ->> 'u' FROM coord.remote_query('s1', 'SELECT current_user AS u') r}), 'remote', 'as the role of the mapping');
  is(settled(@nodes), '', 'nothing is left of it');
}

### What postgres_fdw would refuse

my $exec = q{SELECT coord.remote_exec('s1', 'SELECT 1')};
like(error_of($other, $exec), qr/^42501 permission denied for foreign server s1/, 'a server without USAGE');
$main->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER s1, s2 TO other');
like(error_of($other, $exec), qr/^42704 user mapping not found/, 'without a mapping');
like(error_of($other, q{SELECT coord.remote_exec('none', 'SELECT 1')}), qr/^42704 server "none" does not exist/, 'a server that is none');
like(error_of($other, q{SELECT coord.remote_exec('host=127.0.0.1', 'SELECT 1')}), qr/^42704 server/, 'a connection string');
$other->do(q{CREATE USER MAPPING FOR other SERVER s1 OPTIONS (user 'trusted')});
like(error_of($other, $exec), qr/^2F003 password is required.*Non-superusers must provide a password/s, 'a mapping without a password');
$other->do(q{ALTER USER MAPPING FOR other SERVER s1 OPTIONS (ADD password 'whatever')});
like(error_of($other, $exec), qr/^2F003 password is required.*did not ask for the password/s, 'a participant that does not ask for it');
like(error_of($other, q{ALTER USER MAPPING FOR other SERVER s1 OPTIONS (ADD password_required 'false')}), qr/^42501 /,
  'only a superuser may say that none is required');
like(error_of($other, q{ALTER USER MAPPING FOR other SERVER s1 OPTIONS (ADD sslkey '/etc/passwd')}), qr/^42501 /, 'or name a key file');
$dbh->do(q{ALTER USER MAPPING FOR other SERVER s1 OPTIONS (ADD password_required 'false')});
is(one($other, $exec), 1, 'then it is taken');
$dbh->do(q{ALTER USER MAPPING FOR other SERVER s1 OPTIONS (SET password_required 'true', SET user 'remote')});
like(error_of($other, $exec), qr/^ZC010 participant "s1": .*password authentication failed/s, 'a wrong password');
unlike(error_of($other, $exec), qr/whatever|geheim/, 'which the error does not tell');
$dbh->do(q{CREATE FOREIGN DATA WRAPPER another; CREATE SERVER foreign_one FOREIGN DATA WRAPPER another;
  GRANT USAGE ON FOREIGN SERVER foreign_one TO other; CREATE USER MAPPING FOR other SERVER foreign_one});
like(error_of($other, q{SELECT coord.remote_exec('foreign_one', 'SELECT 1')}), qr/^42809 server "foreign_one" is not a server of postgres_fdw/,
  'another wrapper');
is(one($dbh, q{SELECT count(*) FROM pg_user_mappings WHERE usename = 'app' AND umoptions IS NOT NULL}), 2, 'a superuser sees mappings');

### What others see

{
  my $secret = 'SELECT count(*) FROM mark WHERE name <> $1';
  my $log = log_size($main);
  $app->do('BEGIN');
  my $gtid = one($app, 'SELECT coord.twophase_current()');
  one($app, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, qq{["sehr geheim $_"]}) foreach qw(s1 s2);
  my @views = map { $_->[0] } @{ $dbh->selectall_arrayref(q{SELECT 'coord.' || relname FROM pg_class
    WHERE relnamespace = 'coord'::regnamespace AND relkind = 'v' ORDER BY 1}) };
  my $watcher = session($main, 'postgres', user => 'watcher');
  my $boss = session($main, 'postgres', user => 'boss');
  foreach my $who ([ other => $other ], [ watcher => $watcher ], [ boss => $boss ])
  {
    my ($name, $session) = @$who;
    my $seen = join "\n", map { one($session, "SELECT coalesce(string_agg(v::text, E'\\n'), '') FROM $_ v") } @views;
    unlike($seen, qr/geheim|INSERT INTO mark/, "$name sees no password, no statement and no argument in " . scalar(@views) . ' views');
    my $active = one($session, 'SELECT count(*) FROM coord.twophase_active WHERE gtid = ?', $gtid);
    is($active, $name eq 'other' ? 0 : 1, "$name sees " . ($name eq 'other' ? 'nothing of the transaction' : 'that there is a transaction'));
    is(one($session, q{SELECT count(*) FROM coord.twophase_servers WHERE mapping = 'app'}), $name eq 'other' ? 0 : 2, "$name: its participants");
    like(error_of($session, 'SELECT * FROM coord_internal.twophase_participant'), qr/^42501 /, "$name does not read the tables");
  }
  $app->do('COMMIT');
  is(one($other, 'SELECT count(*) FROM coord.twophase_history WHERE gtid = ?', $gtid), 0, "other does not see what became of it in the history");
  is(one($app, 'SELECT count(*) FROM coord.twophase_history WHERE gtid = ?', $gtid), 1, 'app does');
  unlike(log_since($main, $log), qr/geheim/, 'nothing in the log here');
  is(one($app, 'SELECT coord.twophase_outcome(?)', $gtid), 'committed', 'its outcome');
  foreach my $call (q{coord.twophase_resolve()}, q{coord.twophase_force('coord:x', 's1', 'aborted', 'why')}, q{coord.twophase_adopt(1, 'why')},
    q{coord.create_restore_point('x')})
  {
    like(error_of($other, "SELECT $call"), qr/^42501 /, "other may not call $call");
  }
  my $begun = one($app, q{SELECT coord.twophase_begin('of app')});
  like(error_of($other, 'SELECT coord.twophase_abort(?)', $begun), qr/^42704 /, q{other's abort of an application's transaction});
  like(error_of($other, "SELECT coord.twophase_enlist($begun, 'x', 'f')"), qr/^42704 /, 'other enlists nothing in it');
  like(error_of($other, "CALL coord.twophase_commit($begun)"), qr/^42704 /, 'and does not commit it');
  is(one($app, 'SELECT coord.twophase_abort(?)', $begun), 'aborted', 'app aborts it');
  $_->disconnect foreach $watcher, $boss;
}

# Another's prepared transactions: a name that looks like ours, of another owner.
{
  my $gid = one($dbh, q{SELECT 'coord:' || c.id || ':' || (SELECT oid FROM pg_database WHERE datname = 'postgres') || ':' ||
    (SELECT id FROM coord_internal.twophase_incarnation ORDER BY first_gtid DESC LIMIT 1) || ':1:1:1:1:1' FROM coord_internal.twophase_cluster c});
  my $stranger = session($p1, 'postgres', user => 'trusted');
  $stranger->do('BEGIN');
  $stranger->do(q{INSERT INTO mark VALUES ('of a stranger')});
  $stranger->do(qq{PREPARE TRANSACTION '$gid'});
  one($dbh, q{SELECT count(*) FROM coord.twophase_resolve()});
  is(one($stranger, 'SELECT count(*) FROM pg_prepared_xacts WHERE gid = ?', $gid), 1, q{a stranger's prepared transaction with such a name is left alone});
  $stranger->do(qq{ROLLBACK PREPARED '$gid'});
  $stranger->disconnect;
  one($dbh, q{SELECT count(*) FROM coord.twophase_resolve()});
}

### Foreign tables

{
  $dbh->do(q{CREATE FOREIGN TABLE far_mark (name text) SERVER p2 OPTIONS (table_name 'mark')});
  my $client = reconnect($main);
  my $refused = qr/^0A000 a transaction with participants cannot write foreign tables.*"far_mark".*coord\.remote_exec\(\)/s;
  my $write = q{INSERT INTO far_mark VALUES ('with a foreign table')};
  $client->do('BEGIN');
  one($client, 'SELECT coord.remote_exec(?, ?, ?)', 'p1', $mark, '["with a foreign table"]');
  like(error_of($client, $write), $refused, 'to write a foreign table is refused where there is a participant');
  $client->do('COMMIT');
  $client->do('BEGIN');
  $client->do($write);
  like(error_of($client, 'SELECT coord.remote_exec(?, ?, ?)', 'p1', $mark, '["with a foreign table"]'), $refused,
    'and a participant where one was written');
  $client->do('COMMIT');
  like(error_of($client, qq{CALL coord.twophase_run(ARRAY[coord.branch('p1', 'SELECT 1'), coord.branch(NULL, \$b\$$write\$b\$)])}), $refused,
    'in twophase_run(), too');
  is(marks('with a foreign table', @nodes), '', 'and nothing has happened anywhere');
  $client->do('BEGIN');
  one($client, 'SELECT coord.remote_exec(?, ?, ?)', 'p1', $mark, '["reads a foreign table"]');
  cmp_ok(one($client, 'SELECT count(*) FROM far_mark'), '>', 0, 'a foreign table is read');
  $client->do('COMMIT');
  is(marks('reads a foreign table', @nodes), 'p1', 'which is no obstacle');
  $client->do('BEGIN');
  $client->do(q{INSERT INTO far_mark VALUES ('alone')});
  $client->do('COMMIT');
  is(marks('alone', @nodes), 'p2', 'nor is writing one without participants');
  $client->disconnect;
}

### The only participant that wrote is lost while it commits

{
  my $proxy = DelayProxy->new($p1);
  add_server($main, 'shaky', $p1, host => $proxy->host, port => $proxy->port);
  my $client = reconnect($main);
  foreach my $lost ('request', 'reply')
  {
    $client->do('BEGIN');
    one($client, 'SELECT coord.remote_exec(?, ?, ?)', 'shaky', $mark, qq{["lost $lost"]});
    if ($lost eq 'reply') { $proxy->tell('on reply drop/1 COMMIT') }
    else { $proxy->tell('hang') }
    my $killer = $lost eq 'request' ? reconnect($p1) : undef;
    if ($killer)
    {
      $client->do(q{SET LOCAL coord.twophase_prepare_timeout = '500ms'});
    }
    my $answer = error_of($client, 'COMMIT');
    like($answer, qr/^ZC009 participant "shaky" was lost while it committed/, "ZC009: the $lost is lost");
    like($answer, qr/whether it did is not known here.*coord\.twophase_current\(\)/s, 'it says what that means');
    $proxy->tell($lost eq 'reply' ? 'off' : 'drop');
    $proxy->tell('go') if $lost eq 'request';
    is(one($dbh, 'SELECT 1'), 1, 'the server is fine');
    is(marks("lost $lost", $p1), 'p1', 'it had committed') if $lost eq 'reply';
    $killer->disconnect if $killer;
  }
  is(settled(@nodes), '', 'nothing is left');
  is(one($client, 'SELECT coord.remote_exec(?, ?, ?)', 'shaky', $mark, '["after"]'), 1, 'and it can be used again');
  is(settled(@nodes), '', 'nothing is left');
  $dbh->do('DROP SERVER shaky CASCADE');
  $client->disconnect;
}

### PgBouncer, before the coordinator and before a participant

{
  local $ENV{PATH} = "$ENV{PATH}:/usr/sbin";
  my $dir = PostgreSQL::Test::Utils::tempdir;
  my $port = PostgreSQL::Test::Cluster::get_free_port();
  my $user = one($dbh, 'SELECT current_user');
  append_to_file("$dir/users", qq{"$user" ""\n});
  append_to_file("$dir/pgbouncer.ini", join "\n", '[databases]',
    'main = host=' . $main->host . ' port=' . $main->port . ' dbname=postgres',
    'p2 = host=' . $p2->host . ' port=' . $p2->port . ' dbname=postgres', '[pgbouncer]',
    'listen_addr = 127.0.0.1', "listen_port = $port", 'unix_socket_dir =', 'auth_type = trust',
    "auth_file = $dir/users", 'pool_mode = transaction', 'default_pool_size = 2', 'max_client_conn = 50',
    "logfile = $dir/log", "pidfile = $dir/pid", 'ignore_startup_parameters = extra_float_digits', '');
  my $bouncer = IPC::Run::start([ 'pgbouncer', '-q', "$dir/pgbouncer.ini" ], '<', \undef, '>', '/dev/null', '2>', "$dir/err");
  add_server($main, 'pooled', $p2, host => '127.0.0.1', port => $port, dbname => 'p2');
  my @clients;
  my $end = time + 60;
  while (@clients < 4)
  {
    my $client = eval { session($main, 'main', host => '127.0.0.1', port => $port, plain => 1) };
    die "no PgBouncer: $@" if !$client && time > $end;
    sleep 0.05 if !$client;
    next if !$client;
    $client->{pg_server_prepare} = 0;
    push @clients, $client;
  }
  foreach my $round (1 .. 3)
  {
    foreach my $i (0 .. 3)
    {
      my $name = "pooled $round $i";
      $clients[$i]->do('BEGIN');
      $clients[$i]->do('INSERT INTO mark VALUES (?)', undef, $name);
      one($clients[$i], 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, qq{["$name"]}) foreach 'p1', 'pooled';
      $clients[$i]->do('COMMIT');
      is(marks($name, @nodes), 'main p1 p2', "$name: through PgBouncer twice");
    }
  }
  foreach my $i (0 .. 3)
  {
    my $name = "pooled run $i";
    $clients[$i]->do(q{CALL coord.twophase_run(} . transfer_branches($name, 'p1', 'pooled') . ')');
    is(marks($name, @nodes), 'main p1 p2', "$name: twophase_run through PgBouncer");
  }
  $clients[0]->do('BEGIN');
  one($clients[0], 'SELECT coord.remote_exec(?, ?, ?)', 'pooled', $mark, '["rolled back"]');
  $clients[0]->do('ROLLBACK');
  is(marks('rolled back', @nodes), '', 'a rollback through PgBouncer');
  is(settled(@nodes), '', 'nothing is left');
  $dbh->do('DROP SERVER pooled CASCADE');
  $_->disconnect foreach @clients;
  $bouncer->signal('INT');
  $bouncer->finish;
}

### Decisions are kept as long as somebody has not acknowledged them

{
  my $partitions = q{SELECT count(*) FROM pg_inherits WHERE inhparent = 'coord_internal.twophase_decision'::regclass};
  my $client = reconnect($main);
  my $gate = gate_at($main, 'twophase_committed');
  $client->do(q{SET coord.debug_point = 'wait:twophase_committed'});
  $client->do('BEGIN');
  $client->do(q{INSERT INTO mark VALUES ('kept')});
  one($client, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, '["kept"]') foreach qw(p1 p2);
  send_async($client, 'COMMIT');
  my $pid = wait_at_gate($gate, 'twophase_committed');
  ok($pid, 'a decision that nobody was told of');
  my @stopped = stop_processes($p2);
  kill 'KILL', $pid;
  eval { answer_of($client) };
  open_gate($gate);
  $dbh = reconnect($main);
  my $decision = one($dbh, 'SELECT max(gtid) FROM coord_internal.twophase_decision');
  $dbh->do(q{ALTER SYSTEM SET coord.test_now = '2100-01-01'});
  $dbh->do('SELECT pg_reload_conf()');
  $dbh->disconnect;
  $main->restart;
  $dbh = reconnect($main);
  # Some looks of the resolver, which cannot reach one of them.
  is(wait_until($dbh, 1, q{SELECT count(*) FROM coord.twophase_servers WHERE server_name = 'p2' AND failed_at IS NOT NULL}), 1,
    'the resolver cannot reach p2');
  is(one($dbh, 'SELECT count(*) FROM coord_internal.twophase_decision WHERE gtid = ?', $decision), 1, 'years later the decision is there');
  continue_processes(@stopped);
  is(settled(@nodes), '', 'p2 is back: nothing is left');
  is(marks('kept', @nodes), 'main p1 p2', 'it has happened everywhere');
  is(wait_until($dbh, 0, 'SELECT count(*) FROM coord_internal.twophase_decision WHERE gtid = ?', $decision), 0, 'then its partition is dropped');
  $dbh->disconnect;
}

unlike(slurp_file($main->logfile), qr/PANIC|TRAP:/, 'nothing worse than that in the log');
$_->stop foreach @nodes;
done_testing();
