# The archive and the log: partitions are made ahead, expired ones are dropped by
# the worker with the keys in them, and nobody waits for anybody over it.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# A worker comes for each saga and looks after partitions when it begins.
my $node = new_cluster('retention', 'coord.saga_retention' => '1min', 'coord.worker_idle_timeout' => '100ms',
  timezone => 'UTC');
my $dbh = session($node, 'postgres');
install_sagas($dbh);

# Everybody's clock.
sub clock
{
  my ($time) = @_;
  wait_until($dbh, 0, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord worker'});
  $dbh->do("ALTER SYSTEM SET coord.test_now = '$time'");
  $node->reload;
  wait_until($dbh, $time, q{SELECT current_setting('coord.test_now')});
  # The launcher has it too when a session that came later has it.
  my $session = session($node, 'postgres');
  wait_until($session, $time, q{SELECT current_setting('coord.test_now')});
  $session->disconnect;
  return;
}

sub run
{
  my ($saga, @more) = @_;
  my $id = one($dbh, "SELECT coord.saga_start(?, '{}' @more)", $saga);
  wait_until($dbh, 1, q{SELECT count(*) FROM coord.sagas WHERE id = ? AND finished_at IS NOT NULL}, $id);
  wait_until($dbh, 0, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord worker'});
  return $id;
}

# Is there a partition of $1 for the time $2?
my $covers = q{
  SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
  WHERE i.inhparent = ?::regclass
    AND ?::timestamptz >= substring(pg_get_expr(c.relpartbound, c.oid) FROM $$FROM \('([^']+)'\)$$)::timestamptz
    AND ?::timestamptz < substring(pg_get_expr(c.relpartbound, c.oid) FROM $$TO \('([^']+)'\)$$)::timestamptz};

sub covered
{
  my ($parent, $time) = @_;
  return one($dbh, $covers, "coord_internal.$parent", $time, $time);
}

clock('2040-01-01 00:00:00+00');
my $old = run('quick', q{, key => 'k', correlation_id => '00000000-0000-0000-0000-000000000001'});
my $failed = run('failing');
is(one($dbh, q{SELECT count(*) FROM coord.sagas WHERE id IN (?, ?)}, $old, $failed), 2, 'two are archived');
cmp_ok(one($dbh, q{SELECT count(*) FROM coord.saga_log WHERE saga_id = ?}, $failed), '>', 0, 'and one left something in the log');
foreach my $parent ('saga_archive', 'saga_log')
{
  is(covered($parent, '2040-01-01 00:00:00+00'), 1, "a partition of $parent for now");
}

# Ahead of its time.
clock('2040-01-01 00:00:58+00');
run('quick');
foreach my $parent ('saga_archive', 'saga_log')
{
  is(covered($parent, '2040-01-01 00:01:00+00'), 1, "a partition of $parent is made ahead");
}
is(one($dbh, q{SELECT coord.saga_status(?)}, $old), 'completed', 'a finished saga is kept');
like(error_of($dbh, q{SELECT coord.saga_start('quick', '{"other": 1}', key => 'k')}), qr/^ZC005/, 'and its key');

# Not while somebody reads it.  The reader is not waited for, and nobody waits.
my $reader = session($node, 'postgres');
$reader->begin_work;
is(one($reader, q{SELECT count(*) FROM coord.sagas}), 3, 'a reader reads');
clock('2040-01-01 00:02:30+00');
my $id;
my $time = seconds { $id = run('quick') };
is(one($dbh, q{SELECT coord.saga_status(?)}, $id), 'completed', 'sagas are done while a reader keeps an expired partition');
cmp_ok($time, '<', 5, 'promptly');
is(one($dbh, q{SELECT count(*) FROM pg_locks WHERE NOT granted}), 0, 'nobody waits for a lock');
is(covered('saga_archive', '2040-01-01 00:00:00+00'), 1, 'the expired partition is still there');
is(one($reader, q{SELECT count(*) FROM coord.sagas WHERE id = ?}, $old), 1, 'the reader reads on');
is(one($dbh, q{SELECT count(*) FROM coord.sagas WHERE id = ?}, $id), 1, 'and others do');
unlike(slurp_file($node->logfile), qr/could not drop an expired partition/, 'which is no news for the log');
$reader->rollback;

run('quick');
is(covered($_, '2040-01-01 00:00:00+00'), 0, "then the expired partition of $_ is dropped") foreach 'saga_archive', 'saga_log';
is(covered($_, '2040-01-01 00:02:30+00'), 1, "that of now is there, $_") foreach 'saga_archive', 'saga_log';
like(error_of($dbh, "SELECT coord.saga_status($old)"), qr/^42704/, 'the saga is gone');
is(one($dbh, q{SELECT count(*) FROM coord.saga_log WHERE saga_id = ?}, $failed), 0, 'what the log said is gone');
is(one($dbh, q{SELECT coord.saga_find('quick', 'k')}), undef, 'its key is free');
my $new = one($dbh, q{SELECT coord.saga_start('quick', '{"other": 1}', key => 'k')});
cmp_ok($new, '>', $old, 'and can be used for another saga');
eventually('which is done', $dbh, 'completed', q{SELECT coord.saga_status(?)}, $new);

# A key that went to another saga is not taken from it with the old one.
my $first = one($dbh, q{SELECT coord.saga_start('failing', key => 'again')});
wait_until($dbh, 1, q{SELECT count(*) FROM coord.sagas WHERE id = ? AND finished_at IS NOT NULL}, $first);
is(one($dbh, q{SELECT coord.saga_status(?)}, $first), 'compensated', 'one is compensated');
clock('2040-01-01 00:04:10+00');
my $second = one($dbh, q{SELECT coord.saga_start('failing', key => 'again', on_existing => 'restart_failed')});
wait_until($dbh, 1, q{SELECT count(*) FROM coord.sagas WHERE id = ? AND finished_at IS NOT NULL}, $second);
wait_until($dbh, 0, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord worker'});
clock('2040-01-01 00:04:20+00');
run('quick');
like(error_of($dbh, "SELECT coord.saga_status($first)"), qr/^42704/, 'the first of a key is gone');
is(one($dbh, q{SELECT coord.saga_find('failing', 'again')}), $second, 'the second has the key');

# An unfinished saga never expires.
$dbh->do(q{SELECT coord.saga_start('stopping', key => 'stopped')});
eventually('one is suspended', $dbh, 'suspended', q{SELECT status FROM coord.sagas WHERE key = 'stopped'});
clock('2041-01-01 00:00:00+00');
run('quick');
run('quick');
is(one($dbh, q{SELECT status FROM coord.sagas WHERE key = 'stopped'}), 'suspended', 'and is there a year later');
is(one($dbh, q{SELECT count(*) FROM coord.sagas WHERE finished_at < '2040-12-31'}), 0, 'unlike all that were finished');
cmp_ok(one($dbh, q{SELECT count(*) FROM pg_inherits WHERE inhparent = 'coord_internal.saga_archive'::regclass}), '<=', 3,
  'there are few partitions');

$_->disconnect foreach $dbh, $reader;
$node->stop;
done_testing();
