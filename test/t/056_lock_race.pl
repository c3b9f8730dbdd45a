# A wait that ends twice: the grant comes, and before the process that waited has woken up
# its time is over, or it is cancelled or terminated.  It is told of the error, so it must
# not be left with the lock.
#
# The process is stopped (SIGSTOP) while it waits, gets both, and goes on.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordLocks;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

# Few places for locks, so that one that is counted for ever is soon missed; and no alarm but
# that of the timeouts.
my $node = new_cluster('race', 'coord.max_locks' => 12, deadlock_timeout => '10min', 'coord.worker_idle_timeout' => '1s');
my $admin = session($node, 'postgres');
$admin->do('CREATE DATABASE app');
my $app = session($node, 'app');
$app->do('CREATE EXTENSION coord');
my $holder = session($node, 'app');
my $other = session($node, 'app');

# Does the process have a signal to which it has not come yet?
sub pending
{
  my ($pid, $signal) = @_;
  my $end = time + 120;
  while (time < $end)
  {
    my ($mask) = slurp_file("/proc/$pid/status") =~ /^ShdPnd:\s*[0-9a-f]{8}([0-9a-f]{8})$/m;
    return 1 if hex($mask) & (1 << ($signal - 1));
    sleep 0.02;
  }
  return 0;
}

# The spaces of coord's locks that the process has in pg_locks, with "waits" behind those that
# it waits for.
sub has
{
  my ($pid) = @_;
  return one($app, q{SELECT coalesce(string_agg(DISTINCT concat(objsubid >> 8, CASE WHEN NOT granted THEN ' waits' END), ', '), '')
    FROM pg_locks WHERE locktype = 'advisory' AND objsubid >> 8 IN (77, 78, 79) AND pid = ?}, $pid);
}

# When its wait began, if it waits.
my $since_of = q{SELECT ((SELECT min(waitstart) FROM pg_locks WHERE pid = ? AND NOT granted) };

# Alarms of earlier timeouts may come too soon, and then do nothing.
sub wait_until_time
{
  my ($since, $seconds) = @_;
  sleep 0.02 until one($app, q{SELECT clock_timestamp() > ?::timestamptz + ? * interval '1 s' + interval '10 ms'}, $since, $seconds);
  return;
}

# The signals by which it ends, after the statement has begun to wait.
my %signal = (cancel => POSIX::SIGINT(), terminate => POSIX::SIGTERM(), timeout => POSIX::SIGALRM());

# One waits for 'name', by statements of which the last does; TIMEOUT in them is how long.
# $hold is what the holder says in its transaction, whose end lets the other one in.  Both ends
# of the wait come together; returned is the outcome.  If the time was over too soon, more is
# given.  $granted is what the one who waits then has in pg_locks.
sub race
{
  my ($dbh, $ends, $hold, $granted, @statements) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  my ($seen, $both, $outcome);
  foreach my $seconds (1, 10, 60)
  {
    my $pid = $dbh->{pg_pid};
    my ($wait, @before) = reverse map { s/TIMEOUT/$seconds s/r } @statements;
    one($dbh, $_) foreach reverse @before;
    $holder->begin_work;
    $hold->();
    my $later = later($dbh, $wait);
    wait_for_waiters($app, 'name', $pid);
    wait_until($app, 1, $since_of . 'IS NOT NULL)::int', $pid);
    my $since = one($app, $since_of . ')', $pid);
    kill 'STOP', $pid;
    $holder->rollback;
    $seen = has($pid) eq $granted;
    if ($ends ne 'timeout') { kill $signal{$ends}, $pid }
    elsif ($seen) { wait_until_time($since, $seconds) }
    $both = pending($pid, $signal{$ends}) if $seen;
    kill 'CONT', $pid;
    $outcome = outcome($later) // 'not granted';
    last if $seen || $ends ne 'timeout';
  }
  ok($seen, "$statements[-1], $ends: granted");
  ok($both, 'and ended before it has gone on');
  return $outcome;
}

# Nothing is left but $held: not in the lock manager, in no view, no place of the quota, and
# others get it at once.
sub left
{
  my ($dbh, $held) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  is(has($dbh->{pg_pid}), $held ? '77' : '', 'nothing more is in pg_locks than before');
  is(one($app, q{SELECT coalesce(string_agg(concat_ws(' ', name, mode, scope), ', ' ORDER BY name), '') FROM coord.locks}), $held // '',
    'nor in coord.locks');
  is(one($app, "SELECT count(*) FROM coord.$_"), 0, "coord.$_ is empty") foreach qw(lock_waiters leases);
  return if $held;
  like(one($other, q{SELECT coord.try_lock('name')}), qr/^\d+$/, 'others get the lock');
  my $token = acquire($other, 'name', 'other') // 'not granted';
  like($token, qr/^\d+$/, 'and a lease of that name');
  release($other, 'name', $token) if $token =~ /^\d+$/;
  like(error_of($other, q{SELECT coord.lock_many(array_agg('n' || n)) FROM generate_series(1, 12) n}), qr/^no error/,
    'the quota has all its places');
  return;
}

### Locks

my $dbh = session($node, 'app');
my $has_lock = sub { one($holder, q{SELECT coord.lock('name', timeout => '20 s')}) };
foreach my $scope ('session', 'transaction')
{
  my $lock = "SELECT coord.lock('name', scope => '$scope')";
  like(race($dbh, 'cancel', $has_lock, '77', $lock), qr/^57014/, 'the error is told');
  left($dbh);
  is(one($dbh, q{SELECT coord.unlock('name')}), 0, 'there is nothing to unlock');
  like(race($dbh, 'timeout', $has_lock, '77', q{SELECT set_config('lock_timeout', 'TIMEOUT', false)}, $lock),
    qr/^55P03 canceling statement due to lock timeout/, 'the error is told');
  $dbh->do('RESET lock_timeout');
  left($dbh);
  is(one($dbh, q{SELECT coord.unlock('name')}), 0, 'there is nothing to unlock');
  like(race($dbh, 'timeout', $has_lock, '77', q{SELECT set_config('statement_timeout', 'TIMEOUT', false)}, $lock), qr/^57014/,
    'the error is told');
  $dbh->do('RESET statement_timeout');
  left($dbh);
  like(race($dbh, 'timeout', $has_lock, '77', "SELECT coord.lock('name', scope => '$scope', timeout => 'TIMEOUT')"),
    qr/^55P03 lock "name" was not granted in time/, 'the error is told');
  left($dbh);

  my $victim = session($node, 'app');
  like(race($victim, 'terminate', $has_lock, '77', $lock), qr/terminating connection/, 'the error is told');
  wait_until($app, 0, q{SELECT count(*) FROM pg_stat_activity WHERE pid = ?}, $victim->{pg_pid});
  left($victim);
  eval { $victim->disconnect };

  # Several, some of which are there already when it ends.
  like(race($dbh, 'cancel', $has_lock, '77', "SELECT coord.lock_many('{a,b,c,name,x,y,z}', scope => '$scope')"), qr/^57014/,
    'the error is told');
  left($dbh);

  # The error is caught, and the transaction goes on.
  $dbh->do(q{CREATE FUNCTION caught(scope text, timeout interval) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM coord.lock('name', scope => scope, timeout => timeout);
      RETURN 'granted';
    EXCEPTION WHEN lock_not_available THEN
      RETURN 'caught';
    END $$}) if $scope eq 'session';
  $dbh->begin_work;
  is(race($dbh, 'timeout', $has_lock, '77', "SELECT caught('$scope', 'TIMEOUT')"), 'caught', 'the error is caught');
  left($dbh);
  $dbh->commit;

  # What the session had before in another mode, it has still, and no more.
  one($dbh, "SELECT coord.lock('name', 'share', 'session')");
  like(race($dbh, 'cancel', sub { one($holder, q{SELECT coord.lock('name', 'share', timeout => '20 s')}) }, '77', $lock), qr/^57014/, 'the error is told');
  left($dbh, 'name share session');
  like(one($other, q{SELECT coord.try_lock('name', 'share')}), qr/^\d+$/, 'others get what goes together with that');
  is(one($dbh, q{SELECT coord.unlock('name', 'share')}), 1, 'it is unlocked');
  left($dbh);
}

### Leases

# Before the gate, and before the fence.
my $has_gate = sub { acquire($holder, 'name', 'holder') };
my $has_fence = sub {
  my $token = acquire($other, 'name', 'other');
  $holder->do(q{SELECT coord.fence_check('name', ?)}, undef, $token);
  release($other, 'name', $token);
};
foreach my $of ([ $has_gate, '79' ], [ $has_fence, '78, 79' ])
{
  my ($hold, $granted) = @$of;
  my $acquire = q{SELECT token FROM coord.lease_acquire('name', 'me', timeout => '10 min')};
  like(race($dbh, 'cancel', $hold, $granted, $acquire), qr/^57014/, 'the error is told');
  left($dbh);
  my $victim = session($node, 'app');
  like(race($victim, 'terminate', $hold, $granted, $acquire), qr/terminating connection/, 'the error is told');
  wait_until($app, 0, q{SELECT count(*) FROM pg_stat_activity WHERE pid = ?}, $victim->{pg_pid});
  left($victim);
  eval { $victim->disconnect };

  # Not granted, which is no error; the transaction goes on.
  $dbh->begin_work;
  is(race($dbh, 'timeout', $hold, $granted, q{SELECT token FROM coord.lease_acquire('name', 'me', timeout => 'TIMEOUT')}), 'not granted',
    'that it is not granted is told');
  left($dbh);
  $dbh->commit;
}

# The session's lock_timeout ends a wait before the gate.
like(race($dbh, 'timeout', $has_gate, '79', q{SELECT set_config('lock_timeout', 'TIMEOUT', false)},
    q{SELECT token FROM coord.lease_acquire('name', 'me', timeout => '10 min')}), qr/^55P03 canceling statement due to lock timeout/,
  'the error is told');
$dbh->do('RESET lock_timeout');
left($dbh);

unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|WARNING/, 'no crashes, no warnings');
$_->disconnect foreach $dbh, $other, $holder, $app, $admin;
$node->stop;
done_testing();
