# More is due than the queue in shared memory holds, and more comes while workers
# read the tables: nothing is forgotten, and not because a scan finds it much later.

use strict;
use warnings FATAL => 'all';
use DBI;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = PostgreSQL::Test::Cluster->new('overflow');
$node->init;
$node->append_conf('postgresql.conf', q{
shared_preload_libraries = 'coord'
fsync = off
log_statement = none
coord.max_workers = 1
});
$node->start;
$node->safe_psql('postgres', q{
CREATE EXTENSION coord;
CREATE TABLE effect (saga bigint);
CREATE FUNCTION work(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM count(*) FROM generate_series(1, 500);
  INSERT INTO effect VALUES ((doc ->> 'saga_id')::bigint);
END $$;
SELECT coord.saga_define('work', ARRAY[coord.step('work', 'work')]);
});

sub connect_now
{
  return DBI->connect('dbi:Pg:dbname=postgres;host=' . $node->host . ';port=' . $node->port, undef, '',
    { RaiseError => 1, PrintError => 0 });
}

# Until nothing is left, as long as something is done.
sub left
{
  my ($patience) = @_;
  my ($left, $until) = (1e9, time + $patience);
  while ($left > 0 && time < $until)
  {
    my $now = $node->safe_psql('postgres', 'SELECT count(*) FROM coord_internal.saga');
    $until = time + $patience if $now < $left;
    $left = $now;
    sleep 0.05;
  }
  diag $node->safe_psql('postgres', 'SELECT count(*), min(wake_at), max(wake_at), now() FROM coord_internal.saga; SELECT * FROM coord.workers; SELECT * FROM coord.stuck')
    if $left;
  return $left;
}

### More than the queue holds become due together, and others are started just while
### the worker reads them from the table.

sub set_clock
{
  my ($time) = @_;
  $node->safe_psql('postgres', defined $time ? "ALTER SYSTEM SET coord.test_now = '$time'" : 'ALTER SYSTEM RESET coord.test_now');
  $node->reload;
  $node->poll_query_until('postgres', "SELECT coord_internal.now() = '$time'") or die if defined $time;
}

set_clock('2040-01-01 00:00:00+00');
$node->safe_psql('postgres', q{SELECT coord.saga_start('work')});
is(left(10), 0, 'a worker is there');
$node->safe_psql('postgres', q{SELECT count(coord.saga_start('work', start_at => '2040-01-01 01:00:00+00')) FROM generate_series(1, 10000)});
my $holder = connect_now();
$holder->begin_work;
$holder->do('LOCK TABLE coord_internal.saga');
set_clock('2040-01-01 01:00:01+00');
ok($node->poll_query_until('postgres', q{
    SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity USING (pid)
                   WHERE backend_type = 'coord worker' AND NOT granted AND relation = 'coord_internal.saga'::regclass)}),
  'a worker wants to read what is due');
$holder->do(q{SELECT count(coord.saga_start('work')) FROM generate_series(1, 500)});
$holder->commit;
$holder->disconnect;
is(left(40), 0, 'all of it is done');
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT saga) FROM effect'), '10501|10501', 'once');
set_clock(undef);

### Under load.  Workers go home early: who relies on a later scan is found out.

$node->append_conf('postgresql.conf', q{
coord.max_workers = 4
coord.worker_idle_timeout = 100ms
});
$node->reload;
$node->safe_psql('postgres', 'TRUNCATE effect');
my $total = 0;
foreach my $round (1 .. 2)
{
  my @pids;
  foreach my $client (1 .. 3)
  {
    my $pid = fork // die $!;
    if ($pid == 0)
    {
      my $ok = eval {
        my $dbh = connect_now();
        # Of different sizes, so that the queue is now just full, now far from it.
        $dbh->do('SELECT count(coord.saga_start($1, priority => $3)) FROM generate_series(1, $2)', undef, 'work', $_, $_ % 3 ? 0 : 5)
          foreach (1000, 700, 1500, 300, 1000, 2000, 500, 1000, 1000, 1000);
        $dbh->disconnect;
        1;
      };
      print STDERR $@ unless $ok;
      POSIX::_exit($ok ? 0 : 1);
    }
    push @pids, $pid;
  }
  foreach my $pid (@pids)
  {
    waitpid $pid, 0;
    is($?, 0, 'client ended well');
  }
  $total += 30_000;

  my $left = left(10);
  is($left, 0, "round $round: nothing is left");
  # What was left must not be found by the rounds to come.
  last if $left;
}
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT saga) FROM effect'), "$total|$total", 'all done, once');

$node->stop;
done_testing();
