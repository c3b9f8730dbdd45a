# Partitions of the event log: made ahead, dropped when they are older than the retention,
# never waited for, and kept while somebody is in the way.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
configure($node, shared_preload_libraries => 'coord', max_prepared_transactions => 5, 'coord.event_retention' => '1d',
  'coord.worker_idle_timeout' => '100ms',
  'coord.test_now' => '2030-01-01 00:00:00+00');
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION coord');
my $partitions = q{SELECT coalesce(string_agg(substring(c.relname FROM '[0-9]+$'), ',' ORDER BY c.relname), '')
  FROM pg_inherits i JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'coord_internal.event_log'::regclass};

# A worker that comes keeps house first.
sub pass_time
{
  my ($until) = @_;
  $node->safe_psql('postgres', "ALTER SYSTEM SET coord.test_now = '$until'");
  $node->restart;
  return session($node, 'postgres');
}

# The same with everybody there.
sub keep_house
{
  my ($session, $until) = @_;
  my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord worker'};
  wait_until($session, 0, $workers);
  $session->do("ALTER SYSTEM SET coord.test_now = '$until'");
  $node->reload;
  wait_until($session, $until, 'SHOW coord.test_now');
  one($session, 'SELECT coord.start_worker()');
  return;
}

sub seen
{
  my ($dbh) = @_;
  return one($dbh, q{SELECT coalesce(string_agg(type, ',' ORDER BY pos), '') FROM coord.log_read(0, NULL)});
}

my $dbh = session($node, 'postgres');
my $pos = one($dbh, q{SELECT coord.publish('first')});
is(one($dbh, $partitions), '0', 'the first who publishes makes the first partition');
cmp_ok($pos, '<', 1 << 20, 'the first partition');
is(one($dbh, q{SELECT count(*) FROM coord_internal.event_log_0}), 1, 'it is there');

# Little is published: the next partition begins although this one is not full.
$dbh->disconnect;
$dbh = pass_time('2030-01-01 12:00:00+00');
eventually('the next partitions are made before they are needed', $dbh, '0,1,2', $partitions);
$pos = one($dbh, q{SELECT coord.publish('second')});
is($pos, 1 << 20, 'positions go on in the next partition');
is(one($dbh, q{SELECT coord.publish('second too')}), (1 << 20) + 1, 'one by one');
is(seen($dbh), 'first,second,second too', 'readers notice nothing');

# The first is too old then, and so is soon the second, with an event of a prepared one.
$dbh->do('BEGIN');
one($dbh, q{SELECT coord.publish('prepared')});
$dbh->do(q{PREPARE TRANSACTION 'old'});
$dbh->disconnect;
$dbh = pass_time('2030-01-02 18:00:00+00');
eventually('what is older than the retention is dropped', $dbh, '1,2', $partitions);
is(seen($dbh), 'second,second too', 'the rest is there');
$pos = one($dbh, q{SELECT coord.publish('third')});
is($pos >> 20, 1, 'while a publisher is prepared positions do not jump');

# The second is too old by now, and has an event of a prepared transaction.
$dbh->disconnect;
$dbh = pass_time('2030-01-04 18:00:00+00');
is(one($dbh, $partitions), '1,2', 'its partition is kept, though it is too old');
$dbh->do('SET lock_timeout = 50');
cmp_ok(one($dbh, q{SELECT coord.publish('fourth')}), '>', 0, 'nobody who publishes waits');
is(seen($dbh), 'second,second too', 'what is behind the prepared one is not seen, and nothing is lost');
$dbh->do(q{COMMIT PREPARED 'old'});
is(seen($dbh), 'second,second too,prepared,third,fourth', 'then everything is');

# Somebody reads the log for long, as pg_dump does: nobody waits for him, nor he for us.
$dbh->do('BEGIN ISOLATION LEVEL REPEATABLE READ');
is(one($dbh, 'SELECT count(*) FROM coord_internal.event_log'), 5, 'a long transaction reads the log');
my $other = session($node, 'postgres');
keep_house($other, '2030-01-07 00:00:00+00');
eventually('the next partition begins, and what is too old is kept as long as he reads', $other, '1,2,3', $partitions);
$other->do('SET lock_timeout = 50');
my $slowest = 0;
foreach (1 .. 200)
{
  my $took = seconds { one($other, q{SELECT coord.publish('while it is read')}) };
  $slowest = $took if $took > $slowest;
}
is(one($other, q{SELECT count(*) FROM coord.log_read(0, NULL, '{while*}')}), 200, 'publishing and reading go on');
note "slowest $slowest s";
$dbh->do('COMMIT');
$dbh->disconnect;
$other->disconnect;
$dbh = pass_time('2030-01-10 00:00:00+00');
eventually('it is over: old ones are dropped', $dbh, '3,4', $partitions);
is(seen($dbh), '', 'nothing is left of them');
cmp_ok(one($dbh, q{SELECT coord.publish('last')}), '>', $pos, 'positions only grow');
is(seen($dbh), 'last', 'and the log goes on');
$dbh->disconnect;

# Without a worker who publishes makes the partition himself; two at a time.
$node->stop;
append_to_file($node->data_dir . '/postgresql.conf', "shared_preload_libraries = ''\n");
$node->start;
$dbh = session($node, 'postgres');
$dbh->do('DROP EXTENSION coord; CREATE EXTENSION coord');
is(one($dbh, $partitions), '', 'no worker: no partition');
$dbh->do('BEGIN');
one($dbh, q{SELECT coord.publish('a')});
$other = session($node, 'postgres');
$other->do(q{SELECT coord.publish('b')}, { pg_async => DBD::Pg::PG_ASYNC() });
my $watch = session($node, 'postgres');
eventually('another waits for it', $watch, 1, q{SELECT count(*) FROM pg_stat_activity WHERE pid = ? AND wait_event_type = 'Lock'}, $other->{pg_pid});
$dbh->do('COMMIT');
$other->pg_result;
is(seen($watch), 'a,b', 'both are there');
$_->disconnect foreach $dbh, $other, $watch;

unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|could not/, 'nothing bad in the log');
$node->stop;
done_testing();
