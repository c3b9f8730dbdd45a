# The proxy that stands for a bad network: what other tests rely on.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use DBI;
use DelayProxy;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = PostgreSQL::Test::Cluster->new('participant');
$node->init;
configure($node, max_prepared_transactions => 10, max_connections => 30);
$node->start;
my $direct = session($node, 'postgres');
$direct->do('CREATE TABLE t (i int)');

my $proxy = DelayProxy->new($node);

sub through
{
  return session($node, 'postgres', host => $proxy->host, port => $proxy->port);
}

sub gids { return one($direct, 'SELECT count(*) FROM pg_prepared_xacts') }

# A transaction up to its PREPARE.
sub prepare
{
  my ($dbh, $gid) = @_;
  local $dbh->{PrintWarn} = 0;
  $dbh->do('BEGIN');
  $dbh->do('INSERT INTO t VALUES (1)');
  return error_of($dbh, "PREPARE TRANSACTION '$gid'");
}

# Plenty of data, both ways.
my $dbh = through();
my $long = join ',', 1 .. 300_000;
is(one($dbh, 'SELECT length($1::text)', $long), length $long, 'a long request arrives');
is(one($dbh, q{SELECT md5(repeat('x', 5000000))}), one($direct, q{SELECT md5(repeat('x', 5000000))}), 'a round trip');
is(length one($dbh, q{SELECT repeat('x', 5000000)}), 5000000, 'a long reply arrives');

# Delay: never less than the round trip, and the same for all at a time.
$proxy->tell('delay 200');
cmp_ok(seconds { one($dbh, 'SELECT 1') }, '>=', 0.2, 'a reply comes a round trip later');
$proxy->tell('delay 0');

# Hang: what is on its way arrives when it goes on.
$proxy->tell('hang');
$dbh->do('INSERT INTO t VALUES (2)', { pg_async => DBD::Pg::PG_ASYNC() });
like($proxy->tell('status'), qr/^connections=1 hanging=1 fired=0 hanging$/, 'the proxy hangs');
is(one($direct, 'SELECT count(*) FROM t'), 0, 'nothing arrives');
ok(!$dbh->pg_ready, 'no reply');
$proxy->tell('go');
is($dbh->pg_result, 1, 'the reply, after it went on');
is(one($direct, 'SELECT count(*) FROM t'), 1, 'the request had waited');

# A reply that is lost: prepared, and the client does not know.
$proxy->tell('on reply drop/1 PREPARE TRANSACTION');
like(prepare($dbh, 'lost'), qr/server closed the connection unexpectedly/, 'the connection ends in PREPARE');
is($proxy->fired, 1, 'it fired');
is(gids(), 1, 'the transaction is prepared');
$direct->do(q{ROLLBACK PREPARED 'lost'});
$dbh = through();
is(prepare($dbh, 'again'), 'no error', 'only once');
$direct->do(q{ROLLBACK PREPARED 'again'});

# A request that is lost.
$proxy->tell('off');
$proxy->tell('on request drop PREPARE TRANSACTION');
like(prepare($dbh, 'lost'), qr/server closed the connection unexpectedly/, 'the connection ends before PREPARE');
is($proxy->fired, 1, 'it fired');
eventually('its session ends', $direct, 0, q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT%' AND pid <> pg_backend_pid()});
is(gids(), 0, 'nothing is prepared');

# One that hangs, while others do not; it arrives much later.
$proxy->tell('off');
$proxy->tell('on request hang PREPARE TRANSACTION');
$dbh = through();
$dbh->do('BEGIN');
$dbh->do('INSERT INTO t VALUES (3)');
$dbh->do(q{PREPARE TRANSACTION 'late'}, { pg_async => DBD::Pg::PG_ASYNC() });
is(one(through(), 'SELECT 1'), 1, 'another connection works');
like($proxy->tell('status'), qr/hanging=1 fired=1 forwarding$/, 'one connection hangs');
is(gids(), 0, 'nothing is prepared');
$proxy->tell('off');
$proxy->tell('go');
eventually('the PREPARE arrives after all', $direct, 1, 'SELECT count(*) FROM pg_prepared_xacts');
$dbh->pg_result;
$direct->do(q{ROLLBACK PREPARED 'late'});

# Half-closed: the client sees the end, the server goes on waiting.
my $pid = one($dbh, 'SELECT pg_backend_pid()');
$proxy->tell('halfclose client');
like(error_of($dbh, 'SELECT 1'), qr/server closed the connection unexpectedly/, 'the client is told the end');
undef $dbh;
eventually('the session ends when the client closes', $direct, 0,
  'SELECT count(*) FROM pg_stat_activity WHERE pid = ?', $pid);

# Down: everything ends, and nobody gets in.
$dbh = through();
$proxy->tell('down');
like(error_of($dbh, 'SELECT 1'), qr/server closed the connection unexpectedly/, 'connections end');
ok(!eval { through(); 1 }, 'a new connection');
like($@, qr/Connection refused/, '... is refused');
is($proxy->connections, 0, 'none is left');
$proxy->tell('go');
$dbh = through();
is(one($dbh, 'SELECT 1'), 1, 'up again');
undef $dbh;

# Signals do the same.
sub after_signal
{
  my ($signal, $expected) = @_;
  $proxy->{run}->signal($signal);
  my $end = time + 20;
  sleep 0.01 until $proxy->tell('status') =~ $expected || time > $end;
  return like($proxy->tell('status'), $expected, "SIG$signal");
}
# The session before is gone, or it would hang, too.
my $gone_by = time + 20;
sleep 0.01 until $proxy->connections == 0 || time > $gone_by;
$dbh = through();
after_signal('USR1', qr/^connections=1 hanging=1 fired=0 hanging$/);
after_signal('USR2', qr/^connections=1 hanging=0 fired=0 forwarding$/);
is(one($dbh, 'SELECT 1'), 1, 'the connection is still there');
after_signal('HUP', qr/^connections=0 hanging=0 fired=0 forwarding$/);

ok(!eval { $proxy->tell('on reply explode x'); 1 }, 'an unknown command is an error');
$proxy->stop;
done_testing();
