# Named locks where sessions end in all ways: clients that vanish while they wait and
# while they hold, pg_advisory_unlock_all() and DISCARD ALL, churn that leaves
# nothing, two databases, prepared transactions.
#
# COORD_SHORT=1 leaves out a minute of databases that come and go.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordLocks;
use CoordTasks;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = new_cluster('locks', 'coord.worker_idle_timeout' => '1s', max_prepared_transactions => 5,
  client_connection_check_interval => '50ms');
my $admin = session($node, 'postgres');
$admin->do("CREATE DATABASE $_") foreach qw(app other);
my $app = session($node, 'app');
install_sagas($app);
my @session = map { session($node, 'app') } 1 .. 4;
my ($left, $right, $third, $fourth) = @session;

# What this cluster's sessions hold, as "name mode scope pid".
sub held
{
  return one($app, q{SELECT coalesce(string_agg(concat_ws(' ', name, mode, scope, pid), ', ' ORDER BY name, pid), '')
    FROM coord.locks});
}

# A process that runs a statement and can be killed; what its session's process is.
my $dbh_outside;
sub vanishing
{
  my ($sql) = @_;
  my $outside = outside {
    my ($say) = @_;
    my $dbh = $dbh_outside = session($node, 'app');
    $say->($dbh->{pg_pid});
    $say->(one($dbh, $sql) // 'nothing');
  };
  return ($outside, heard($outside));
}

# How many of coord's locks and advisory locks there are, without that by which a session
# knows that its locks are still there.
sub advisory_locks
{
  return one($app, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid >> 8 <> 80});
}

### The quota comes back, however a transaction ends

{
  my $short = session($node, 'app');
  $short->do('BEGIN');
  one($short, q{SELECT coord.lock('short')});
  my $pid = $short->{pg_pid};
  one($app, q{SELECT pg_terminate_backend(?)}, $pid);
  wait_until($app, 0, q{SELECT count(*) FROM pg_stat_activity WHERE pid = ?}, $pid);
  is(error_of($left, q{SELECT coord.lock('short')}), 'no error', 'a lock of a session that was terminated in its transaction is free');

  $short = session($node, 'app');
  $short->do('BEGIN');
  one($short, q{SELECT coord.lock('short')});
  one($short, q{SELECT coord.lock('session', scope => 'session')});
  $pid = $short->{pg_pid};
  $short->disconnect;
  wait_until($app, 0, q{SELECT count(*) FROM pg_stat_activity WHERE pid = ?}, $pid);
  is(error_of($left, q{SELECT coord.lock_many('{short, session}')}), 'no error', 'so are those of one that left in its transaction');
  is(held(), '', 'nothing is held');
}

### Clients that vanish

# Who waits for a lock.
{
  one($left, q{SELECT coord.lock('queue', scope => 'session')});
  my ($gone, $gone_pid) = vanishing(q{SELECT coord.lock('queue')});
  wait_for_waiters($app, 'queue', $gone_pid);
  my $second = later($right, q{SELECT coord.lock('queue', scope => 'session')});
  wait_for_waiters($app, 'queue', $gone_pid, $right->{pg_pid});
  my ($also, $also_pid) = vanishing(q{SELECT coord.lock('queue', timeout => '1 min')});
  wait_for_waiters($app, 'queue', $gone_pid, $right->{pg_pid}, $also_pid);
  my $last = later($third, q{SELECT coord.lock('queue', scope => 'session')});
  ok(wait_for_waiters($app, 'queue', $gone_pid, $right->{pg_pid}, $also_pid, $third->{pg_pid}), 'four wait, in their order');
  kill_outside($gone);
  ok(wait_for_waiters($app, 'queue', $right->{pg_pid}, $also_pid, $third->{pg_pid}), 'the first has vanished, and leaves the queue');
  kill_outside($also);
  ok(wait_for_waiters($app, 'queue', $right->{pg_pid}, $third->{pg_pid}), 'one in the middle as well');
  is(one($left, q{SELECT coord.unlock('queue')}), 1, 'the holder unlocks');
  my $token = outcome($second);
  like($token, qr/^\d+$/, 'who came next has it');
  ok(wait_for_waiters($app, 'queue', $third->{pg_pid}), 'the last still waits');
  is(one($app, q{SELECT pid || ' ' || waiters FROM coord.locks WHERE name = 'queue'}), "$right->{pg_pid} 1", 'coord.locks');
  is(one($right, q{SELECT coord.unlock('queue')}), 1, 'he unlocks');
  cmp_ok(outcome($last), '>', $token, 'the last has it, with a higher token');
  is(one($third, q{SELECT coord.unlock('queue')}), 1, 'and unlocks');
}

# Who waits for a lease: at the head, and behind it.
{
  my $token = acquire($left, 'lease', 'left');
  my ($head, $head_pid) = vanishing(q{SELECT token FROM coord.lease_acquire('lease', 'head', timeout => '1 min')});
  wait_for_waiters($app, 'lease', $head_pid);
  my ($behind, $behind_pid) = vanishing(q{SELECT token FROM coord.lease_acquire('lease', 'behind', timeout => '1 min')});
  wait_for_waiters($app, 'lease', $head_pid, $behind_pid);
  my $second = later($right, q{SELECT token FROM coord.lease_acquire('lease', 'right', timeout => '1 min')});
  wait_for_waiters($app, 'lease', $head_pid, $behind_pid, $right->{pg_pid});
  my $last = later($third, q{SELECT token FROM coord.lease_acquire('lease', 'third', timeout => '1 min')});
  ok(wait_for_waiters($app, 'lease', $head_pid, $behind_pid, $right->{pg_pid}, $third->{pg_pid}), 'four wait for a lease, in their order');
  is(one($app, q{SELECT waiters FROM coord.leases WHERE name = 'lease'}), 4, 'coord.leases counts them');
  kill_outside($behind);
  ok(wait_for_waiters($app, 'lease', $head_pid, $right->{pg_pid}, $third->{pg_pid}), 'one in the middle has vanished, and leaves the queue');
  kill_outside($head);
  ok(wait_for_waiters($app, 'lease', $right->{pg_pid}, $third->{pg_pid}), 'so does the head');
  is(release($left, 'lease', $token), 1, 'the holder releases');
  my $next = outcome($second);
  cmp_ok($next, '>', $token, 'who came next has it, with a higher token');
  is(one($app, q{SELECT owner || ' ' || waiters FROM coord.leases WHERE name = 'lease'}), 'right 1', 'coord.leases');

  # Cancelled and terminated.
  my $fourth_waits = later($fourth, q{SELECT token FROM coord.lease_acquire('lease', 'fourth', timeout => '1 min')});
  wait_for_waiters($app, 'lease', $third->{pg_pid}, $fourth->{pg_pid});
  one($app, q{SELECT pg_cancel_backend(?)}, $third->{pg_pid});
  like(outcome($last), qr/^57014/, 'a waiter is cancelled');
  ok(wait_for_waiters($app, 'lease', $fourth->{pg_pid}), 'who was behind it is the head');
  one($app, q{SELECT pg_terminate_backend(?)}, $fourth->{pg_pid});
  ok(wait_for_waiters($app, 'lease'), 'terminated, it leaves the queue');
  outcome($fourth_waits);
  eval { $fourth->disconnect };
  $fourth = $session[3] = session($node, 'app');
  is(release($right, 'lease', $next), 1, 'the holder releases');
  $token = acquire($third, 'lease', 'third');
  cmp_ok($token, '>', $next, 'and it is free');
  release($third, 'lease', $token);
}

# Who holds.
{
  my ($gone, $gone_pid) = vanishing(q{SELECT coord.lock('held', scope => 'session')});
  my $token = heard($gone);
  is(one($left, q{SELECT coord.try_lock('held')}), undef, 'a client holds a lock of its session');
  my $waits = later($left, q{SELECT coord.lock('held')});
  wait_for_waiters($app, 'held', $left->{pg_pid});
  kill_outside($gone);
  cmp_ok(outcome($waits), '>', $token, 'it is killed, and who waits has the lock');
  is(held(), '', 'nothing is held');
}

### pg_advisory_unlock_all() and DISCARD ALL

foreach my $all ('SELECT pg_advisory_unlock_all()', 'DISCARD ALL')
{
  my @warnings;
  local $SIG{__WARN__} = sub { push @warnings, @_ };
  my $dbh = session($node, 'app', plain => 1);
  $dbh->{PrintWarn} = 1;
  $dbh->{pg_server_prepare} = 0;
  my $token = one($dbh, q{SELECT coord.lock('mine', scope => 'session')});
  one($dbh, q{SELECT coord.lock('mine', scope => 'session')});
  one($dbh, q{SELECT coord.lock('shared', 'share', 'session')});
  is(held(), "mine exclusive session $dbh->{pg_pid}, shared share session $dbh->{pg_pid}", "before $all two are held");
  $dbh->do($all);
  is(held(), '', 'coord.locks has nothing after it');
  like(error_of($dbh, q{SELECT coord.fence_check('mine', ?)}, $token), qr/^ZC002/, 'the token is stale');
  is(one($dbh, q{SELECT coord.unlock(?)}, 'mine'), 0, 'there is nothing to unlock');
  is(one($dbh, q{SELECT coord.unlock('shared', 'share')}), 0, 'nor there');
  cmp_ok(one($left, q{SELECT coord.lock('mine', scope => 'session')}), '>', $token, 'others get it');
  is(one($dbh, q{SELECT coord.try_lock('mine', scope => 'session')}), undef, 'then this one does not');
  one($left, q{SELECT coord.unlock('mine')});
  cmp_ok(one($dbh, q{SELECT coord.lock('mine', scope => 'session')}), '>', $token, 'and can have it again');
  is(held(), "mine exclusive session $dbh->{pg_pid}", 'coord.locks has that');
  is(one($dbh, q{SELECT coord.unlock('mine')}), 1, 'and unlocks it once');
  is(one($dbh, q{SELECT coord.unlock('mine')}), 0, 'no more');
  is(join('', @warnings), '', 'no warnings');
  is(held(), '', 'nothing is held');
  $dbh->disconnect;
}

# In the middle of a transaction that holds locks as well.
{
  my @warnings;
  local $SIG{__WARN__} = sub { push @warnings, @_ };
  my $dbh = session($node, 'app', plain => 1);
  $dbh->{PrintWarn} = 1;
  one($dbh, q{SELECT coord.lock('both', scope => 'session')});
  $dbh->begin_work;
  my $token = one($dbh, q{SELECT coord.lock('both')});
  one($dbh, q{SELECT coord.lock('transaction')});
  is(error_of($dbh, q{SELECT coord.fence_check('both', ?)}, $token), 'no error', 'the token of a lock of the session is good');
  $dbh->do('SELECT pg_advisory_unlock_all()');
  is(held(), "both exclusive transaction $dbh->{pg_pid}, transaction exclusive transaction $dbh->{pg_pid}",
    'what the transaction holds is left, and coord.locks says that it is the transaction\'s');
  is(one($left, q{SELECT coord.try_lock('both')}), undef, 'it is held');
  is(one($dbh, q{SELECT coord.unlock('both')}), 0, 'the session has nothing to unlock');
  $dbh->commit;
  is(join('', @warnings), '', 'no warnings');
  is(held(), '', 'after the transaction nothing is held');
  like(one($left, q{SELECT coord.try_lock('both')}), qr/^\d+$/, 'others get it');
  $dbh->disconnect;
}

# Fenced by a lock of the session, which the session then loses.
{
  my $dbh = session($node, 'app');
  my $token = one($dbh, q{SELECT coord.lock('fenced', scope => 'session')});
  $dbh->begin_work;
  $dbh->do(q{SELECT coord.fence_check('fenced', ?)}, undef, $token);
  $dbh->do('SELECT pg_advisory_unlock_all()');
  is(one($left, q{SELECT coord.try_lock('fenced')}), undef, 'a transaction keeps the lock that it was checked by');
  $dbh->commit;
  like(one($left, q{SELECT coord.try_lock('fenced')}), qr/^\d+$/, 'to its end');
  like(error_of($dbh, q{SELECT coord.fence_check('fenced', ?)}, $token), qr/^ZC002/, 'then the token is stale');
  $dbh->disconnect;
}

# In steps: each takes locks of the session, and drops all that there are.
{
  $app->do(q{CREATE FUNCTION wild(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM coord.lock('step', scope => 'session');
      PERFORM pg_advisory_unlock_all();
      PERFORM coord.lock('step' || (doc ->> 'saga_id'), scope => 'session');
      RETURN public.note(doc);
    END $$});
  one($app, q{SELECT coord.saga_define('wild', ARRAY[coord.step('one', 'public.wild'), coord.step('two', 'public.wild'),
    coord.step('three', 'public.wild'), coord.step('four', 'public.wild')])});
  $app->do('TRUNCATE effect');
  $app->do(q{SELECT coord.saga_start('wild') FROM generate_series(1, 60)});
  # A session that runs steps itself, and has a lock of its own.
  one($left, q{SELECT coord.lock('own', scope => 'session')});
  $left->do(q{CALL coord.run_pending()});
  $left->do('DISCARD ALL');
  $left->do(q{CALL coord.run_pending()});
  # What a step left in a session that is not a worker's is the session's.
  $left->do('DISCARD ALL');
  eventually('all sagas are done', $app, 60, q{SELECT count(*) FROM coord.sagas WHERE name = 'wild' AND status = 'completed'});
  is(one($app, q{SELECT string_agg(DISTINCT n::text, ',') || ' ' || count(*) FROM (
      SELECT count(*) AS n FROM effect GROUP BY saga, step) t}), '1 240', 'each step was done once');
  is(held(), '', 'locks that steps took are gone, and coord.locks does not show them');
  is(advisory_locks(), 0, 'nor does pg_locks');
}

# A step that would drop everything is not let.
{
  $app->do(q{CREATE FUNCTION discards(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
    BEGIN
      EXECUTE 'DISCARD ALL';
      RETURN public.note(doc);
    END $$});
  one($app, q{SELECT coord.saga_define('discarding', ARRAY[coord.step('one', 'public.note', 'public.undo'),
    coord.step('two', 'public.discards')])});
  $app->do('TRUNCATE effect');
  my @id = map { one($app, q{SELECT coord.saga_start('discarding')}) } 1 .. 4;
  is(one($app, q{SELECT coord.saga_wait(?, '15 s')}, $_), 'compensated', 'a saga whose step says DISCARD ALL is undone') foreach @id;
  is(one($app, q{SELECT string_agg(DISTINCT n::text, ',') || ' ' || count(*) FROM (
      SELECT count(*) AS n FROM effect GROUP BY saga, step, phase) t}), '1 8', 'once');
}

### Churn

{
  $admin->do(q{ALTER SYSTEM SET coord.max_locks = 50});
  one($admin, 'SELECT pg_reload_conf()');
  eventually('coord.max_locks is set', $_, 50, q{SELECT setting FROM pg_settings WHERE name = 'coord.max_locks'})
    foreach $app, @session;
  # A transaction for each round: what is granted in one is held to its end.
  $app->do(q{CREATE PROCEDURE churn(who text, rounds int, INOUT result text DEFAULT NULL) LANGUAGE plpgsql AS $$
    DECLARE
      granted int := 0; refused int := 0; failed int := 0; leased int := 0; stale int := 0; many int := 0; full_up int := 0;
      t bigint; i int;
    BEGIN
      FOR i IN 1 .. rounds LOOP
        -- Granted, and given back by an error.
        BEGIN
          PERFORM coord.lock('t' || i || who), coord.lock('s' || i || who, scope => 'session');
          granted := granted + 1;
          RAISE 'no' USING ERRCODE = 'P0001';
        EXCEPTION WHEN raise_exception THEN
          failed := failed + 1;
        END;
        IF NOT coord.unlock('s' || i || who) THEN RAISE 'a lock of the session was lost'; END IF;
        -- Not granted.
        BEGIN
          PERFORM coord.lock('taken', CASE WHEN i % 2 = 0 THEN 'share' ELSE 'exclusive' END,
            CASE WHEN i % 3 = 0 THEN 'session' ELSE 'transaction' END, CASE WHEN i % 50 = 0 THEN interval '1 ms' ELSE '0' END);
        EXCEPTION WHEN lock_not_available THEN
          refused := refused + 1;
        END;
        IF coord.try_lock('taken', scope => 'session') IS NULL THEN refused := refused + 1; END IF;
        -- Several, of which one is not granted.
        BEGIN
          PERFORM coord.lock_many(ARRAY['a' || who, 'taken', 'z' || who], scope => 'session', timeout => '0');
        EXCEPTION WHEN lock_not_available THEN
          many := many + 1;
        END;
        -- More than there may be.
        IF who = 'alone' AND i % 10 = 0 THEN
          BEGIN
            PERFORM coord.lock_many(array_agg('q' || n), 'share', CASE WHEN i % 20 = 0 THEN 'session' ELSE 'transaction' END)
              FROM generate_series(1, 60) n;
          EXCEPTION WHEN configuration_limit_exceeded THEN
            full_up := full_up + 1;
          END;
        END IF;
        -- Leases.
        IF i % 5 = 0 THEN
          SELECT token INTO t FROM coord.lease_acquire('l' || i || who, 'me');
          IF NOT coord.lease_release('l' || i || who, t) THEN RAISE 'a lease was lost'; END IF;
          BEGIN
            PERFORM coord.lease_acquire('m' || i || who, 'me');
            RAISE 'no' USING ERRCODE = 'P0001';
          EXCEPTION WHEN raise_exception THEN
            leased := leased + 1;
          END;
          IF EXISTS (SELECT FROM coord.lease_acquire('leased', who, timeout => CASE WHEN i % 50 = 0 THEN interval '1 ms' ELSE '0' END)) THEN
            RAISE 'granted twice';
          END IF;
          BEGIN
            PERFORM coord.fence_check('l' || i || who, t);
          EXCEPTION WHEN SQLSTATE 'ZC002' THEN
            stale := stale + 1;
          END;
        END IF;
        COMMIT;
      END LOOP;
      result := concat_ws(' ', granted, failed, refused, many, full_up, leased, stale);
    END $$});
  one($fourth, q{SELECT coord.lock('taken', scope => 'session')});
  my $token = acquire($fourth, 'leased', 'fourth');
  my @churn = map { later($session[$_], qq{CALL churn('of $_', 500)}) } 0 .. 2;
  is(outcome($churn[$_]), '500 500 1000 500 0 100 100', "churn $_: grants, refusals and errors are what they should be")
    foreach 0 .. 2;
  is(one($left, q{CALL churn('alone', 100)}), '100 100 200 100 10 20 20', 'churn alone');

  # What is not held does not count.
  my $mine = acquire($left, 'mine', 'left');
  my @nothing = (
    [ 'one fence, however often it is checked,', qq{SELECT coord.fence_check('mine', $mine) FROM generate_series(1, 60)} ],
    [ 'a lease of one\'s own, asked for again,', q{SELECT coord.lease_acquire('mine', 'left') FROM generate_series(1, 60)} ],
    [ 'a lease that is not granted', q{SELECT coord.lease_acquire('leased', 'left') FROM generate_series(1, 60)} ],
    [ 'a lock that is not granted', q{SELECT coord.try_lock('taken') FROM generate_series(1, 60)} ],
    [ 'a lock that is held already', q{SELECT coord.lock('again') FROM generate_series(1, 60)} ],
    [ 'what was rolled back to a savepoint', q{DO $$ BEGIN
        FOR i IN 1 .. 60 LOOP
          BEGIN
            PERFORM coord.lease_acquire('rolled back ' || i, 'left'), coord.lock('rolled back ' || i);
            RAISE 'no' USING ERRCODE = 'P0001';
          EXCEPTION WHEN raise_exception THEN NULL;
          END;
        END LOOP; END $$} ]);
  foreach my $of (@nothing)
  {
    $left->begin_work;
    is(error_of($left, $of->[1]), 'no error', "$of->[0] does not count");
    $left->rollback;
  }
  release($left, 'mine', $mine);
  one($fourth, q{SELECT coord.unlock('taken')});
  release($fourth, 'leased', $token);

  # Sessions that end with all they have.
  foreach my $i (1 .. 20)
  {
    my $dbh = session($node, 'app');
    one($dbh, q{SELECT coord.lock('of a session', 'share', 'session')});
    $dbh->begin_work;
    one($dbh, q{SELECT coord.lock('of a transaction', 'share')});
    one($dbh, q{SELECT token FROM coord.lease_acquire(?, 'nobody')}, "unseen $i");
    one($app, q{SELECT pg_terminate_backend(?)}, $dbh->{pg_pid}) if $i % 2;
    eval { $dbh->disconnect };
  }
  eventually('sessions have ended', $app, 0, q{SELECT count(*) FROM pg_stat_activity WHERE datname = 'app'
    AND backend_type = 'client backend' AND pid <> ALL (?)}, [ map { $_->{pg_pid} } $app, @session ]);
  is(held(), '', 'then coord.locks is empty');
  is(one($app, "SELECT count(*) FROM coord.$_"), 0, "coord.$_ is empty") foreach qw(lock_waiters leases);
  is(one($app, 'SELECT count(*) FROM coord_internal.lease'), 0, 'no row of a lease is left');
  is(advisory_locks(), 0, 'the lock manager has nothing');

  # The count is exact.
  foreach my $dbh ($left, $right)
  {
    $dbh->begin_work;
    is(one($dbh, q{SELECT cardinality(coord.lock_many(array_agg('n' || n))) FROM generate_series(1, 50) n}), 50,
      'as many as coord.max_locks are granted');
    is(one($app, 'SELECT count(*) FROM coord.locks'), 50, 'and are in coord.locks');
    like(error_of($third, q{SELECT coord.lock('one more')}), qr/^53400 .*too many locks: "one more" was not taken/, 'not one more');
    like(error_of($third, q{SELECT coord.try_lock('one more', 'share', 'session')}), qr/^53400/, 'in no way');
    is(error_of($third, q{SELECT coord.unlock('one more')}), 'no error', 'unlock() works');
    $dbh->commit;
  }
  is(error_of($third, q{SELECT coord.lock('one more')}), 'no error', 'then there is room again');
  $admin->do(q{ALTER SYSTEM RESET coord.max_locks});
  one($admin, 'SELECT pg_reload_conf()');
}

### Prepared transactions

{
  $left->do('BEGIN');
  my $token = one($left, q{SELECT coord.lock('prepared')});
  $left->do(q{PREPARE TRANSACTION 'locks'});
  is(one($right, q{SELECT coord.try_lock('prepared')}), undef, 'a prepared transaction keeps its lock');
  is(one($left, q{SELECT coord.try_lock('prepared')}), undef, 'also from the session that prepared it');
  is(one($app, q{SELECT count(*) || ' ' || count(pid) || ' ' || count(name) FROM coord.locks}), '1 0 0',
    'coord.locks has it, without a process and a name');
  my $waits = later($right, q{SELECT coord.lock('prepared')});
  wait_for_waiters($app, 'prepared', $right->{pg_pid});
  $left->do(q{COMMIT PREPARED 'locks'});
  cmp_ok(outcome($waits), '>', $token, 'COMMIT PREPARED frees it');
  is(held(), '', 'nothing is held');

  # Session locks cannot be part of it.
  one($left, q{SELECT coord.lock('session', scope => 'session')});
  $left->do('BEGIN');
  one($left, q{SELECT coord.lock('transaction')});
  $left->do(q{PREPARE TRANSACTION 'locks'});
  $left->do(q{ROLLBACK PREPARED 'locks'});
  is(held(), "session exclusive session $left->{pg_pid}", 'a lock of the session stays with it');
  one($left, q{SELECT coord.unlock('session')});
}

### Two databases

{
  my $other = session($node, 'other');
  $other->do('CREATE EXTENSION coord');
  one($left, q{SELECT coord.lock('name', scope => 'session')});
  my $token = acquire($left, 'name', 'left');
  one($left, q{SELECT coord.semaphore_create('semaphore', 1)});
  my $permit = acquire($left, 'semaphore', 'left');
  like(one($other, q{SELECT coord.try_lock('name', scope => 'session')}), qr/^\d+$/, 'a lock of the same name in another database is free');
  my $others = acquire($other, 'name', 'other');
  cmp_ok($others, '>', $token, 'so is a lease');
  cmp_ok(acquire($other, 'semaphore', 'other'), '>', $others, 'what is a semaphore here is a lease there');
  like(error_of($other, q{SELECT coord.fence_check('name', ?)}, $token), qr/^ZC002/, 'a token is not good there');
  is(error_of($other, q{SELECT coord.fence_check('name', ?)}, $others), 'no error', 'its own is');
  foreach my $of ([ $app, 'left' ], [ $other, 'other' ])
  {
    my ($dbh, $owner) = @$of;
    is(one($dbh, q{SELECT string_agg(name || ' ' || pid, ',') FROM coord.locks}),
      'name ' . ($dbh == $app ? $left : $other)->{pg_pid}, "coord.locks has what is in this database ($owner)");
    is(one($dbh, q{SELECT string_agg(concat_ws(' ', name, owner), ',' ORDER BY name) FROM coord.leases}), "name $owner,semaphore $owner",
      'so has coord.leases');
  }
  $left->begin_work;
  one($left, q{SELECT coord.fence_check('name', ?)}, $token);
  is(one($other, q{SELECT coord.lease_break('name')}), 1, 'the lease there is broken');
  cmp_ok(acquire($other, 'name', 'next'), '>', $others, 'no fence here keeps the next from it');
  $left->commit;
  is(one($app, q{SELECT count(*) FROM coord.leases}), 2, 'here they are still held');
  $other->disconnect;

  # A database that is gone, and one of the same name.
  eventually('the session has ended', $admin, 0, q{SELECT count(*) FROM pg_stat_activity WHERE datname = 'other' AND backend_type = 'client backend'});
  $admin->do('DROP DATABASE other');
  $admin->do('CREATE DATABASE other');
  $other = session($node, 'other');
  $other->do('CREATE EXTENSION coord');
  is(one($other, q{SELECT count(*) FROM coord.leases}), 0, 'a new database of the same name has no leases');
  cmp_ok(acquire($other, 'name', 'new'), '>', $others, 'and tokens go on');
  $other->disconnect;
  one($left, q{SELECT coord.unlock('name')});
}

# More databases than coord serves at a time, one after the other.
unless ($ENV{COORD_SHORT})
{
  my $error = 'no error';
  foreach my $i (1 .. 130)
  {
    $admin->do('CREATE DATABASE brief TEMPLATE other');
    my $brief = session($node, 'brief');
    $error = error_of($brief, q{SELECT coord.lock('name')});
    $brief->disconnect;
    $admin->do('DROP DATABASE brief WITH (FORCE)');
    last if $error ne 'no error';
  }
  is($error, 'no error', '130 databases come and go');
}

is(one($app, 'SELECT count(*) FROM coord.stuck'), 0, 'nothing is stuck');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal/, 'no crashes');
$_->disconnect foreach @session, $app, $admin;
$node->stop;
done_testing();
