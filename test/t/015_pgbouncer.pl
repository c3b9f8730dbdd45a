# Sessions that go through PgBouncer in transaction mode, more of them than
# connections to the server.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('pooled');
my $direct = session($node, 'postgres');
install_sagas($direct);

# The program is in sbin, which is not in everybody's path.
local $ENV{PATH} = "$ENV{PATH}:/usr/sbin";
my $dir = PostgreSQL::Test::Utils::tempdir;
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $user = one($direct, 'SELECT current_user');
append_to_file("$dir/users", qq{"$user" ""\n});
append_to_file("$dir/pgbouncer.ini", join "\n", '[databases]',
  'postgres = host=' . $node->host . ' port=' . $node->port . ' dbname=postgres', '[pgbouncer]',
  'listen_addr = 127.0.0.1', "listen_port = $port", 'unix_socket_dir =', 'auth_type = trust',
  "auth_file = $dir/users", 'pool_mode = transaction', 'default_pool_size = 2', 'max_client_conn = 50',
  "logfile = $dir/log", "pidfile = $dir/pid", 'ignore_startup_parameters = extra_float_digits', '');
my $bouncer = IPC::Run::start([ 'pgbouncer', '-q', "$dir/pgbouncer.ini" ], '<', \undef, '>', '/dev/null', '2>', "$dir/err");

sub pooled
{
  my $end = time + 20;
  while (1)
  {
    my $dbh = eval { session($node, 'postgres', host => '127.0.0.1', port => $port, plain => 1) };
    return pooled_settings($dbh) if $dbh;
    die "no PgBouncer: $@" if time > $end;
    select undef, undef, undef, 0.05;
  }
}

# Statements that are prepared in one connection are not in the next.
sub pooled_settings
{
  my ($dbh) = @_;
  $dbh->{pg_server_prepare} = 0;
  return $dbh;
}

my @dbh = map { pooled() } 1 .. 6;

my @id = map { one($_, q{SELECT coord.saga_start('quick')}) } @dbh;
is(one($dbh[ 5 - $_ ], q{SELECT coord.saga_wait(?, '15 s')}, $id[$_]), 'completed', "saga_wait() from another session, $_")
  foreach 0 .. 5;

# Waiting all at once, on two connections.
$direct->do('SELECT pg_advisory_lock(1)');
@id = map { one($_, q{SELECT coord.saga_start('gated', '{"gate": 1}')}) } @dbh[ 0 .. 3 ];
$dbh[$_]->do("SELECT coord.saga_wait($id[$_], '15 s')", { pg_async => DBD::Pg::PG_ASYNC() }) foreach 0 .. 3;
$direct->do('SELECT pg_advisory_unlock(1)');
my $waited = 0;
foreach (0 .. 3)
{
  $waited += $dbh[$_]->pg_result;
}
is($waited, 4, 'four sessions wait at the same time');
is(one($dbh[0], q{SELECT count(*) FROM coord.sagas WHERE status = 'completed' AND name = 'gated'}), 4, 'all are done');

# A transaction that starts several and one that takes it back.
$dbh[0]->begin_work;
my $first = one($dbh[0], q{SELECT coord.saga_start('quick', key => 'first')});
one($dbh[0], q{SELECT coord.saga_start('quick', key => 'second')});
$dbh[0]->commit;
is(one($dbh[1], q{SELECT coord.saga_wait(coord.saga_find('quick', 'second'), '15 s')}), 'completed',
  'both starts of a transaction are done');
is(one($dbh[2], q{SELECT coord.saga_start('quick', key => 'first')}), $first, 'a key finds its saga');
$dbh[0]->begin_work;
one($dbh[0], q{SELECT coord.saga_start('quick', key => 'third')});
$dbh[0]->rollback;
is(one($dbh[1], q{SELECT coord.saga_find('quick', 'third')}), undef, 'a rolled back one is not there');

# Procedures that commit.
like(join('|', @{ $dbh[3]->selectrow_arrayref(q{CALL coord.saga_run('quick', '{}')}) }[1, 2]),
  qr/^completed\|\{"one": "one", "two": "two"\}$/, 'saga_run()');
one($direct, q{SELECT coord.pause()});
my $id = one($dbh[4], q{SELECT coord.saga_start('quick')});
one($dbh[0], q{SELECT coord.resume()});
ok(defined one($dbh[5], q{CALL coord.run_pending()}), 'run_pending()');
eventually('what was due is done', $dbh[1], 'completed', q{SELECT coord.saga_status(?)}, $id);
ok(defined one($dbh[5], q{CALL coord.drain('10 s')}), 'drain()');
one($dbh[0], q{SELECT coord.resume()});

# Operators.
$id = one($dbh[0], q{SELECT coord.saga_start('napping')});
wait_until($direct, 1, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord worker' AND wait_event = 'PgSleep'});
like(one($dbh[1], q{SELECT coord.saga_cancel(?, 'enough', true)}, $id), qr/^(running|compensating|compensated)$/,
  'saga_cancel(interrupt => true)');
is(one($dbh[2], q{SELECT coord.saga_wait(?, '15 s')}, $id), 'compensated', 'the saga ends');
$id = one($dbh[0], q{SELECT coord.saga_start('stopping')});
is(one($dbh[1], q{SELECT coord.saga_wait(?, '15 s')}, $id), 'suspended', 'a saga is suspended');
one($dbh[2], q{SELECT coord.saga_skip(?, 'fail')}, $id);
is(one($dbh[3], q{SELECT coord.saga_wait(?, '15 s')}, $id), 'completed', 'and goes on after a repair');

is(one($direct, q{SELECT count(*) <= 2 FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()}),
  1, 'all that took two connections');
$_->disconnect foreach @dbh, $direct;
$bouncer->signal('INT');
$bouncer->finish;
$node->stop;
done_testing();
