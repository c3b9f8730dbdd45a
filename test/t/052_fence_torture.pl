# Clients that increment a counter by SELECT and UPDATE, in separate statements, under
# a lease with a short time to live, while who holds it is stopped for twice that
# time.  With fence_check() no update is lost; without it, some are.  First by a
# script, then by many clients at random.
#
# Eight clients; COORD_SHORT=1 for four, and for a shorter time.  COORD_SEED repeats a
# run, as far as the processes' own choices go.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordLocks;
use CoordTasks;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $clients = $ENV{COORD_SHORT} ? 4 : 8;
my $duration = $ENV{COORD_SHORT} ? 5 : 20;
my $ttl_ms = 150;
my $seed = $ENV{COORD_SEED} // 4711;

my $node = new_cluster('fence', 'coord.worker_idle_timeout' => '1s');
my $app = session($node, 'postgres');
$app->do('CREATE EXTENSION coord');
$app->do('CREATE TABLE counter (name text PRIMARY KEY, n int)');
$app->do(q{INSERT INTO counter VALUES ('counter', 0), ('guarded', 0)});

sub counter
{
  my ($dbh) = @_;
  return one($dbh, q{SELECT n FROM counter WHERE name = 'counter'});
}

sub set_counter
{
  my ($dbh, $n) = @_;
  $dbh->do(q{UPDATE counter SET n = ? WHERE name = 'counter'}, undef, $n);
  return;
}

sub lease_is_over
{
  my ($name) = @_;
  wait_until($app, 0, q{SELECT count(*) FROM coord.leases WHERE name = ?}, $name) eq '0' or die 'the lease does not end';
  return;
}

### By a script

my ($slow, $quick) = map { session($node, 'postgres') } 1 .. 2;

# One reads, and is stopped; meanwhile another has done it all; then the one goes on.
sub interleave
{
  my ($how, $isolation) = @_;
  set_counter($app, 0);
  my $token = acquire($slow, 'script', 'slow', ttl => "$ttl_ms ms");
  $slow->do("BEGIN ISOLATION LEVEL $isolation");
  my $read = counter($slow);
  lease_is_over('script');

  my $next = acquire($quick, 'script', 'quick');
  $quick->do('BEGIN');
  $quick->do(q{SELECT coord.fence_check('script', ?)}, undef, $next) if $how eq 'checked';
  set_counter($quick, counter($quick) + 1);
  $quick->do('COMMIT');

  my $error = $how eq 'checked' ? error_of($slow, q{SELECT coord.fence_check('script', ?)}, $token) : 'no error';
  if ($error eq 'no error')
  {
    set_counter($slow, $read + 1);
    $slow->do('COMMIT');
  }
  else
  {
    $slow->do('ROLLBACK');
  }
  release($quick, 'script', $next);
  return $error;
}

is(interleave('unchecked', 'READ COMMITTED'), 'no error', 'without fence_check() both clients increment');
is(counter($app), 1, 'and an update is lost');
foreach my $isolation ('READ COMMITTED', 'REPEATABLE READ')
{
  like(interleave('checked', $isolation), qr/^ZC002 token \d+ of "script" is stale/, "with it the one that was stopped is refused ($isolation)");
  is(counter($app), 1, 'and nothing is lost');
}

# The check comes first: then the other one waits.
{
  set_counter($app, 0);
  my $token = acquire($slow, 'script', 'slow', ttl => "$ttl_ms ms");
  $slow->do('BEGIN');
  $slow->do(q{SELECT coord.fence_check('script', ?)}, undef, $token);
  my $read = counter($slow);
  lease_is_over('script');
  is(acquire($quick, 'script', 'quick'), undef, 'while a fenced transaction is open nobody is granted the lease');
  my $waits = later($quick, q{SELECT token FROM coord.lease_acquire('script', 'quick', timeout => '20 s')});
  wait_until($app, 1, q{SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = ?}, $quick->{pg_pid});
  # A savepoint that is rolled back does not let go of it.
  $slow->do('SAVEPOINT s');
  is(error_of($slow, q{SELECT coord.fence_check('script', ?)}, $token) =~ /^ZC002/, 1, 'a second check finds that the time is over');
  $slow->do('ROLLBACK TO s');
  is(one($app, q{SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = ?}, $quick->{pg_pid}), 1, 'the other still waits');
  set_counter($slow, $read + 1);
  $slow->do('COMMIT');
  my $next = outcome($waits);
  cmp_ok($next, '>', $token, 'when it has ended, he is');
  is(counter($quick), 1, 'and reads what was written');
  release($quick, 'script', $next);
}

# A table that takes no write without a check.
{
  $app->do(q{CREATE TABLE account (id int PRIMARY KEY, n int)});
  $app->do(q{INSERT INTO account VALUES (1, 0)});
  $app->do(q{SELECT coord.fence_guard('account', 'script')});
  my $token = acquire($slow, 'script', 'slow', ttl => "$ttl_ms ms");
  lease_is_over('script');
  my $next = acquire($quick, 'script', 'quick');
  like(error_of($slow, 'UPDATE account SET n = n + 1'), qr/^ZC002/, 'a guarded table takes no write that is not checked');
  $quick->do('BEGIN');
  $quick->do(q{SELECT coord.fence_check('script', ?)}, undef, $next);
  is($quick->do('UPDATE account SET n = n + 1'), 1, 'but one that is');
  $quick->do('COMMIT');
  like(error_of($quick, 'UPDATE account SET n = n + 1'), qr/^ZC002/, 'for one transaction');
  is(one($app, 'SELECT n FROM account'), 1, 'so it was written once');
  release($quick, 'script', $next);
}

### A fenced transaction that is idle

{
  my $token = acquire($slow, 'idle', 'slow', ttl => "$ttl_ms ms");
  $slow->do('BEGIN');
  $slow->do(q{SELECT coord.fence_check('idle', ?)}, undef, $token);
  set_counter($slow, 1000);
  lease_is_over('idle');
  my $pid = $slow->{pg_pid};
  is(acquire($quick, 'idle', 'quick', timeout => '600 ms'), undef, 'without coord.fence_steal_timeout it is waited for');
  is(one($app, 'SELECT count(*) FROM pg_stat_activity WHERE pid = ?', $pid), 1, 'and is not touched');

  $app->do(q{ALTER SYSTEM SET coord.fence_steal_timeout = '100ms'});
  one($app, 'SELECT pg_reload_conf()');
  eventually('coord.fence_steal_timeout is set', $quick, '100', q{SELECT setting FROM pg_settings WHERE name = 'coord.fence_steal_timeout'});
  my $position = log_size($node);
  my $next = acquire($quick, 'idle', 'quick', timeout => '20 s');
  cmp_ok($next // 0, '>', $token, 'with it the next one is granted the lease');
  eventually('the idle one is gone', $app, 0, 'SELECT count(*) FROM pg_stat_activity WHERE pid = ?', $pid);
  like(error_of($slow, 'COMMIT'), qr/^(57P01|08)/, 'it cannot commit');
  isnt(counter($app), 1000, 'and has written nothing');
  like(log_since($node, $position), qr/LOG:.*process $pid was terminated: its fenced transaction was idle/, 'the log says so');
  eval { $slow->disconnect };
  $slow = session($node, 'postgres');

  # One that works is not touched, nor one that has no fence of this name.
  release($quick, 'idle', $next);
  $token = acquire($slow, 'idle', 'slow', ttl => "$ttl_ms ms");
  my $other = session($node, 'postgres');
  my $others = acquire($other, 'others', 'other', ttl => '1 min');
  $other->do('BEGIN');
  $other->do(q{SELECT coord.fence_check('others', ?)}, undef, $others);
  $app->do('SELECT pg_advisory_lock(1)');
  $slow->do('BEGIN');
  $slow->do(q{SELECT coord.fence_check('idle', ?)}, undef, $token);
  my $works = later($slow, 'SELECT pg_advisory_xact_lock(1)');
  lease_is_over('idle');
  is(acquire($quick, 'idle', 'quick', timeout => '600 ms'), undef, 'a fenced transaction that is not idle is waited for');
  $app->do('SELECT pg_advisory_unlock(1)');
  is(outcome($works), '', 'and goes on');
  $slow->do('COMMIT');
  is(error_of($other, 'COMMIT'), 'no error', 'so does one that is fenced by another name');
  release($other, 'others', $others);
  $other->disconnect;
  $app->do(q{ALTER SYSTEM RESET coord.fence_steal_timeout});
  one($app, 'SELECT pg_reload_conf()');
}
$_->disconnect foreach $slow, $quick;

### At random

# A client: increments until the table "stop" has a row, and says how often it did,
# how often it was refused, and what else went wrong.
my $dbh_outside;
$app->do('CREATE TABLE stop ()');
sub client
{
  my ($owner, $lease, $checked) = @_;
  return outside {
    my ($say) = @_;
    my $dbh = $dbh_outside = session($node, 'postgres');
    my ($done, $refused, $other) = (0, 0, '');
    $say->('begins');
    srand($seed + $$);
    until (one($dbh, 'SELECT count(*) FROM stop'))
    {
      my $token = acquire($dbh, $lease, $owner, ttl => "$ttl_ms ms", timeout => '5 s') // next;
      my $first = $checked && rand() < 0.3;
      my $ok = eval {
        $dbh->begin_work;
        $dbh->do('SELECT coord.fence_check(?, ?)', undef, $lease, $token) if $first;
        my $n = counter($dbh);
        sleep rand 0.01;
        $dbh->do('SELECT coord.fence_check(?, ?)', undef, $lease, $token) if $checked && !$first;
        set_counter($dbh, $n + 1);
        $dbh->commit;
        1;
      };
      if ($ok)
      {
        $done++;
      }
      else
      {
        my $state = $dbh->state;
        $dbh->rollback;
        $state eq 'ZC002' ? $refused++ : ($other .= "$state ");
      }
      release($dbh, $lease, $token);
    }
    $say->("$done $refused $other");
  };
}

# Stops who holds the lease for twice its time, again and again until $enough->();
# then how many updates were counted by clients, in the table, refused, and stops.
sub torture
{
  my ($lease, $checked, $enough) = @_;
  set_counter($app, 0);
  $app->do('TRUNCATE stop');
  my %client = map { ("client $_" => client("client $_", $lease, $checked)) } 1 .. $clients;
  heard($_) foreach values %client;
  my ($stops, $end) = (0, time + 60);
  until ($enough->($stops) || time > $end)
  {
    my $holder = one($app, 'SELECT owner FROM coord.leases WHERE name = ?', $lease) // next;
    kill 'STOP', $client{$holder}{pid};
    # It may have come to an end before; then another is stopped.
    $stops++ if (one($app, 'SELECT owner FROM coord.leases WHERE name = ?', $lease) // '') eq $holder;
    sleep 2 * $ttl_ms / 1000;
    kill 'CONT', $client{$holder}{pid};
    # Let the others have a go.
    sleep rand 0.05;
  }
  $app->do('INSERT INTO stop DEFAULT VALUES');
  my ($done, $refused, $others) = (0, 0, '');
  foreach my $name (sort keys %client)
  {
    my $line = heard($client{$name});
    $line =~ /^(\d+) (\d+) (.*)$/ or die "$name: $line";
    $done += $1;
    $refused += $2;
    $others .= $3;
  }
  kill_outside($_) foreach values %client;
  return ($done, counter($app), $refused, $others, $stops);
}

srand $seed;
{
  my $end = time + $duration;
  my ($done, $counted, $refused, $others, $stops) = torture('checked', 1, sub { time > $end && $_[0] >= 5 });
  note("$done increments, $refused refused, $stops stops");
  cmp_ok($stops, '>=', 5, 'holders were stopped');
  cmp_ok($done, '>=', 50, 'clients have incremented');
  cmp_ok($refused, '>', 0, 'some were refused');
  is($counted, $done, 'with fence_check() no update is lost');
  is($others, '', 'no other errors');
}
{
  my ($done, $counted, $refused, $others, $stops);
  my $end = time + 60;
  my $rounds = 0;
  do
  {
    my $stop_at = time + 2;
    ($done, $counted, $refused, $others, $stops) = torture('unchecked', 0, sub { time > $stop_at && $_[0] >= 3 });
    $rounds++;
  } until ($done > $counted || time > $end);
  note("$done increments, $counted counted, $stops stops, $rounds rounds");
  cmp_ok($counted, '<', $done, 'without it updates are lost');
  is($others, '', 'and nobody is told');
}

# Nothing is left.
is(one($app, 'SELECT count(*) FROM coord.locks'), 0, 'nothing is locked');
eventually('no lease is held', $app, 0, 'SELECT count(*) FROM coord.leases');
is(one($app, 'SELECT count(*) FROM coord.lock_waiters'), 0, 'nobody waits');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal/, 'no crashes');
$app->disconnect;
$node->stop;
done_testing();
