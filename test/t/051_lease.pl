# Leases over kill -9 of the postmaster, promotion, DROP EXTENSION, a template, pause
# and resume, prepared transactions: nobody is granted what somebody else still has.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordLocks;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = PostgreSQL::Test::Cluster->new('leases');
$node->init(allows_streaming => 1);
configure($node, shared_preload_libraries => 'coord', 'coord.worker_idle_timeout' => '200ms', max_prepared_transactions => 5);
$node->start;
my ($admin, $app, $left, $right, $third);

# New sessions to $node.
sub connect_all
{
  ($admin, $app, $left, $right, $third) = map { session($node, $_) } 'postgres', ('app') x 4;
  return;
}

sub disconnect_all
{
  eval { $_->disconnect } foreach $admin, $app, $left, $right, $third;
  return;
}

# Until the server's clock says more than this time.
sub wait_past
{
  my ($dbh, $time) = @_;
  wait_until($dbh, 1, q{SELECT (clock_timestamp() > ?::timestamptz)::int}, $time);
  return;
}

# Until the statement of this session waits for a lock.
sub wait_for_lock
{
  my ($dbh) = @_;
  wait_until($admin, 1, q{SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = ?}, $dbh->{pg_pid}) eq '1'
    or die 'it does not wait for a lock';
  return;
}

sub expires_at
{
  my ($name) = @_;
  return one($app, q{SELECT expires_at FROM coord.leases WHERE name = ?}, $name);
}

sub now
{
  return one($app, q{SELECT clock_timestamp()});
}

session($node, 'postgres')->do('CREATE DATABASE app');
connect_all();
install_sagas($app);
$app->do('CREATE TABLE protected (by text)');

### kill -9 of the postmaster, and promotion

# Leases in all states; and after whatever happened, who has what.
my (%token, $semaphore_token);
sub take_leases
{
  my ($round) = @_;
  $token{$_} = acquire($left, $_, 'left', ttl => '1 min') foreach qw(long released broken renewed campaign);
  $token{$_} = acquire($left, $_, 'left', ttl => '3 s') foreach qw(short waited);
  one($left, q{SELECT coord.semaphore_create('semaphore', 2)});
  $token{semaphore} = acquire($left, 'semaphore', 'left', ttl => '1 min', permits => 2);
  $token{leader} = one($left, q{SELECT token FROM coord.leader_campaign('leader', 'left', '1 min')});
  one($left, q{SELECT coord.lease_renew('renewed', ?, '10 min')}, $token{renewed});
  one($left, q{SELECT coord.lease_renew('long', ?, '1 s')}, $token{long});
  $left->begin_work;
  $token{rolled} = acquire($left, 'rolled', 'left');
  $left->rollback;
  is(one($left, q{SELECT coord.lease_break('broken', 'test')}), 1, "$round: a lease is broken");
  is(release($left, 'released', $token{released}), 1, 'another is released');
  is(one($left, q{SELECT coord.once_per('daily', '1 day')}), $round eq 'kill -9' ? 1 : 0, 'what happens once a day');
  # Whatever is durable: a release may be lost.
  $left->do('CHECKPOINT');
  # Not committed.
  $right->begin_work;
  $token{uncommitted} = acquire($right, 'uncommitted', 'right');
  return;
}

sub check_leases
{
  my ($round, $from) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  is(one($app, q{SELECT string_agg(name || ' ' || owner, ', ' ORDER BY name) FROM coord.leases}),
    'campaign left, leader left, long left, renewed left, semaphore left, short left, waited left', "after $round: who has what");
  is(one($app, q{SELECT string_agg(name || ' ' || token, ', ' ORDER BY name) FROM coord.leases}),
    join(', ', map { "$_ $token{$_}" } qw(campaign leader long renewed semaphore short waited)), 'with their tokens');
  is(one($app, q{SELECT bool_and(expires_at >= ?::timestamptz + ttl AND expires_at <= clock_timestamp() + ttl) FROM coord.leases}, $from),
    1, 'each for its full time to live, counted from then')
    or diag(one($app, q{SELECT string_agg(name || ' ' || ttl || ' ' || expires_at, ', ') FROM coord.leases}), " since $from");
  is(one($app, q{SELECT ttl FROM coord.leases WHERE name = 'renewed'}), '00:10:00', 'the longer one of a renewal');

  my $waits = later($third, q{SELECT token FROM coord.lease_acquire('waited', 'third', timeout => '10 s')});
  foreach my $name (qw(campaign leader long renewed short))
  {
    is(acquire($right, $name, 'right'), undef, "$name is not granted to somebody else");
  }
  is(acquire($right, 'semaphore', 'right'), undef, 'nor are permits');
  is(one($right, q{SELECT is_leader || ' ' || leader FROM coord.leader_campaign('leader', 'right')}), 'false left', 'nor does somebody else lead');
  is(acquire($right, 'long', 'left'), $token{long}, 'the owner asks again and has the same token');
  is(error_of($right, q{SELECT coord.lease_renew('renewed', ?)}, $token{renewed}), 'no error', 'it can be renewed');
  is(error_of($right, q{SELECT coord.fence_check('leader', ?)}, $token{leader}), 'no error', 'and checked');
  cmp_ok(acquire($right, $_, 'right'), '>', $token{uncommitted}, "$_ is free, and has a higher token")
    foreach qw(released broken rolled uncommitted);
  like(error_of($left, qq{SELECT coord.fence_check('$_', ?)}, $token{$_}), qr/^ZC002/, "and the token of $_ from before is stale")
    foreach qw(released broken rolled uncommitted);
  is(one($right, q{SELECT coord.once_per('daily', '1 day')}), 0, 'what happened today is not done again');

  # When the time is over.
  my $expires_at = expires_at('waited');
  my $next = outcome($waits);
  cmp_ok($next, '>', $token{uncommitted}, 'a waiter is granted the lease, with a higher token');
  is(one($app, q{SELECT granted_at >= ?::timestamptz - interval '10 ms' FROM coord.leases WHERE name = 'waited'}, $expires_at), 1,
    'not before its time is over');
  like(error_of($left, q{SELECT coord.lease_renew('waited', ?)}, $token{waited}), qr/^ZC001/, 'the one from before is lost');
  like(error_of($left, q{SELECT coord.fence_check('waited', ?)}, $token{waited}), qr/^ZC002/, 'and stale');
  cmp_ok(acquire($right, 'short', 'right', timeout => '5 s'), '>', $next, 'the same for another');
  foreach my $name (qw(campaign leader long renewed semaphore short waited released broken rolled uncommitted))
  {
    one($app, q{SELECT coord.lease_break(?)}, $name);
  }
  is(one($app, 'SELECT count(*) FROM coord.leases'), 0, 'all are broken');
  is(one($app, 'SELECT count(*) FROM coord_internal.lease'), 0, 'no row is left');
  return;
}

{
  take_leases('kill -9');
  my $before = now();
  kill_server($node);
  disconnect_all();
  connect_all();
  cmp_ok(one($app, q{SELECT (pg_postmaster_start_time() > ?)::int}, $before), '==', 1, 'the server was started anew');
  check_leases('kill -9', one($app, 'SELECT pg_postmaster_start_time()'));
}

# Counted from the start also if nobody looks for a while: the launcher does.
{
  my $token = acquire($left, 'unseen', 'left', ttl => '1 s');
  kill_server($node);
  disconnect_all();
  $admin = session($node, 'postgres');
  wait_until($admin, 1, q{SELECT (clock_timestamp() > pg_postmaster_start_time() + interval '3 s')::int});
  connect_all();
  cmp_ok(acquire($right, 'unseen', 'right') // 0, '>', $token, 'a lease that nobody has asked for since the start is over by now');
  one($app, q{SELECT coord.lease_break('unseen')});
}

{
  $node->backup('base');
  my $standby = PostgreSQL::Test::Cluster->new('standby');
  $standby->init_from_backup($node, 'base', has_streaming => 1);
  $standby->start;
  take_leases('promotion');
  $node->wait_for_catchup($standby, 'replay', $node->lsn('flush'));

  my $reader = session($standby, 'app');
  my $any = $token{long};
  foreach my $verb (
    q{lock('a')}, q{lock('a', 'share', 'session', '1 s')}, q{try_lock('a')}, q{try_lock('a', 'share', 'session')}, q{unlock('a')},
    q{lock_many('{a,b}')}, q{lease_acquire('a', 'me')}, q{lease_acquire('long', 'left')}, qq{lease_renew('long', $any)},
    qq{lease_release('long', $any)}, q{lease_break('long')}, qq{fence_check('long', $any)}, q{fence_guard('protected', 'long')},
    q{fence_unguard('protected')}, qq{fence_advance($any)}, q{semaphore_create('b', 2)}, q{semaphore_resize('semaphore', 3)},
    q{semaphore_drop('semaphore')}, q{leader_campaign('leader', 'left')}, q{leader_resign('leader', 'left')}, q{once_per('daily', '1 day')})
  {
    like(error_of($reader, "SELECT * FROM coord.$verb"), qr/^25006 .*HINT/s, "$verb is refused on a standby");
  }
  is(error_of($reader, "SELECT * FROM coord.$_"), 'no error', "coord.$_ works there")
    foreach qw(locks lock_waiters leases leaders lease_log);
  is(one($reader, q{SELECT count(*) FROM coord_internal.lease}), 7, 'rows are there');
  is(one($reader, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'}), 0, 'nothing is held there');
  $reader->disconnect;

  $node->kill9;
  disconnect_all();
  my $session = session($standby, 'postgres');
  my $before = one($session, 'SELECT clock_timestamp()');
  $session->disconnect;
  $standby->promote;
  $node = $standby;
  connect_all();
  check_leases('promotion', $before);
}

### Housekeeping by the worker

{
  acquire($left, $_, 'left', ttl => '100 ms') foreach qw(one two);
  one($left, q{SELECT coord.semaphore_create('permits', 3)});
  acquire($left, 'permits', $_, ttl => '100 ms') foreach qw(a b);
  my $token = acquire($left, 'permits', 'c', ttl => '1 min');
  my $expired = acquire($left, 'three', 'left', ttl => '100 ms');
  my $expires_at = now();
  wait_past($app, one($app, q{SELECT ?::timestamptz + interval '200 ms'}, $expires_at));
  is(one($app, 'SELECT count(*) FROM coord_internal.lease'), 6, 'rows of leases that have expired');
  is(one($app, q{SELECT string_agg(owner, ',') FROM coord.leases}), 'c', 'coord.leases does not show them');
  wait_until($admin, 0, 'SELECT count(*) ' . WORKERS, 'app');
  one($app, q{SELECT coord.saga_start('quick')});
  eventually('a worker removes them', $app, 1, 'SELECT count(*) FROM coord_internal.lease');
  is(one($app, q{SELECT string_agg(owner, ',') FROM coord.leases}), 'c', 'and no other');
  is(release($left, 'three', $expired), 0, 'releasing one of them says that it is over');
  is(release($left, 'permits', $token), 1, 'the other can be released');
  one($left, q{SELECT coord.semaphore_drop('permits')});
}

### Pause and resume

{
  # A grant that is in a transaction meanwhile.
  $left->begin_work;
  my $token = acquire($left, 'meanwhile', 'left');
  one($app, q{SELECT coord.pause()});
  one($app, q{SELECT coord.resume()});
  is(one($app, q{SELECT count(*) FROM coord.leases WHERE name = 'meanwhile'}), 0, 'a grant that is not committed');
  $left->commit;
  is(one($app, q{SELECT token FROM coord.leases WHERE name = 'meanwhile'}), $token, 'it is, after a pause and a resume');
  is(acquire($right, 'meanwhile', 'right'), undef, 'and is not granted to somebody else');
  is(error_of($left, q{SELECT coord.lease_renew('meanwhile', ?)}, $token), 'no error', 'its owner has it');
  one($app, q{SELECT coord.lease_break('meanwhile')});

  # One that is over.
  $token = acquire($left, 'over', 'left', ttl => '100 ms');
  wait_past($app, one($app, q{SELECT clock_timestamp() + interval '150 ms'}));
  like(error_of($left, q{SELECT coord.lease_renew('over', ?)}, $token), qr/^ZC001/, 'a lease is over');
  one($app, q{SELECT coord.pause()});
  one($app, q{SELECT coord.resume()});
  like(error_of($left, q{SELECT coord.lease_renew('over', ?)}, $token), qr/^ZC001/, 'and still is after a pause and a resume');
  one($app, q{SELECT coord.lease_break('over')});
}

### Durable whatever the session says

# A synchronous standby that is not there: who waits for it is seen to wait.
foreach my $level (qw(off local remote_write))
{
  is(want_standby($node, 'nobody'), 1, 'a synchronous standby is wanted');
  $left->do("SET synchronous_commit = $level");
  my $waits = later($left, q{SELECT token FROM coord.lease_acquire('durable', 'left')});
  eventually("with synchronous_commit = $level a grant waits for the standby", $admin, 'SyncRep',
    q{SELECT wait_event FROM pg_stat_activity WHERE pid = ?}, $left->{pg_pid});
  is(acquire($right, 'durable', 'right'), undef, 'nobody else has it meanwhile');
  $admin->do(q{ALTER SYSTEM RESET synchronous_standby_names});
  $node->reload;
  my $token = outcome($waits);
  is(one($left, 'SHOW synchronous_commit'), $level, 'the setting is as it was');
  is(release($left, 'durable', $token), 1, 'it is released');
  $left->do('RESET synchronous_commit');
}

### Prepared transactions

{
  my $token = acquire($left, 'fenced', 'left', ttl => '300 ms');
  $left->do('BEGIN');
  $left->do(q{SELECT coord.fence_check('fenced', ?)}, undef, $token);
  $left->do(q{INSERT INTO protected VALUES ('left')});
  $left->do(q{PREPARE TRANSACTION 'fenced'});
  my $over = q{SELECT count(*) FROM coord.leases WHERE name = 'fenced'};
  eventually('the lease is over', $app, 0, $over);
  is(acquire($right, 'fenced', 'right', timeout => '300 ms'), undef, 'a prepared transaction keeps its fence');
  $node->stop('immediate');
  $node->start;
  disconnect_all();
  connect_all();
  eventually('after a restart the lease is over again', $app, 0, $over);
  is(acquire($right, 'fenced', 'right', timeout => '300 ms'), undef, 'and the fence is there');
  my $waits = later($third, q{SELECT token FROM coord.lease_acquire('fenced', 'third', timeout => '20 s')});
  wait_for_lock($third);
  is(lock_waiters($app, 'fenced'), $third->{pg_pid}, 'who waits for it is in coord.lock_waiters');
  $left->do(q{COMMIT PREPARED 'fenced'});
  my $next = outcome($waits);
  cmp_ok($next, '>', $token, 'after COMMIT PREPARED a waiter is granted the lease');
  is(one($app, 'SELECT count(*) FROM protected'), 1, 'what was prepared is there');

  $left->do('BEGIN');
  $left->do(q{SELECT coord.fence_check('fenced', ?)}, undef, $next);
  $left->do(q{PREPARE TRANSACTION 'fenced'});
  is(release($third, 'fenced', $next), 1, 'the holder releases');
  $waits = later($right, q{SELECT token FROM coord.lease_acquire('fenced', 'right', timeout => '20 s')});
  wait_for_lock($right);
  $left->do(q{ROLLBACK PREPARED 'fenced'});
  cmp_ok(outcome($waits), '>', $next, 'ROLLBACK PREPARED lets go of the fence, too');
  one($app, q{SELECT coord.lease_break('fenced')});

  foreach my $what (q{SELECT token FROM coord.lease_acquire('prepared', 'left')}, q{SELECT coord.semaphore_create('prepared', 2)})
  {
    $left->do('BEGIN');
    one($left, $what);
    like(error_of($left, q{PREPARE TRANSACTION 'lease'}), qr/^0A000 .*HINT/s, "$what cannot be prepared");
    $left->do('ROLLBACK');
    is(one($app, q{SELECT count(*) FROM coord.leases WHERE name = 'prepared'}), 0, 'and is nothing then');
  }
  my $free = acquire($right, 'prepared', 'right');
  ok($free, 'it is free');
  release($right, 'prepared', $free);
}

### A template

{
  my %held = map { $_ => acquire($left, $_, 'left', ttl => '10 min') } qw(first second);
  one($left, q{SELECT coord.semaphore_create('pool', 2)});
  disconnect_all();
  $admin = session($node, 'postgres');
  $admin->do('CREATE DATABASE copy TEMPLATE app');
  connect_all();
  my $copy = session($node, 'copy');
  foreach my $verb (
    q{lease_acquire('new', 'me')}, q{lease_acquire('first', 'left')}, qq{lease_renew('first', $held{first})},
    qq{lease_release('first', $held{first})}, q{lease_break('first')}, qq{fence_check('first', $held{first})},
    q{semaphore_create('new', 2)}, q{semaphore_resize('pool', 3)}, q{semaphore_drop('pool')}, q{leader_campaign('new', 'me')},
    q{leader_resign('new', 'me')}, q{once_per('new', '1 day')})
  {
    like(error_of($copy, "SELECT * FROM coord.$verb"), qr/^55000 this database is a copy.*HINT:.*coord\.resume/s, "$verb is refused in a copy");
  }
  like(one($copy, q{SELECT coord.lock('first')}), qr/^\d+$/, 'locks work there');
  my $mine = acquire($left, 'third', 'left');
  ok(release($left, 'first', $held{first}), 'the original goes on');
  is(one($copy, q{SELECT coord.resume()}), 1, 'coord.resume()');
  is(one($copy, q{SELECT string_agg(name || ' ' || owner || ' ' || token, ', ' ORDER BY name) FROM coord.leases}),
    "first left $held{first}, second left $held{second}", 'then it has the leases of the moment when it was made');
  is(acquire($copy, 'first', 'other'), undef, 'their owners have them');
  is(acquire($copy, 'first', 'left'), $held{first}, 'with their tokens');
  cmp_ok(acquire($copy, 'third', 'other'), '>', $mine, 'new ones have higher tokens');
  is(error_of($copy, q{SELECT coord.semaphore_resize('pool', 3)}), 'no error', 'semaphores are there');
  is(one($app, q{SELECT string_agg(name || ' ' || owner, ', ' ORDER BY name) FROM coord.leases}), 'second left, third left',
    'the original has its own');
  $copy->disconnect;
  one($app, q{SELECT coord.lease_break(name) FROM coord.leases});
}

### DROP EXTENSION and CREATE EXTENSION

{
  my $token = acquire($left, 'held', 'left', ttl => '10 min');
  one($left, q{SELECT coord.lock('kept', scope => 'session')});
  one($right, q{SELECT coord.semaphore_create('dropped', 2)});
  acquire($right, 'dropped', 'right', permits => 2);
  one($app, q{SELECT count(*) FROM coord.leases});
  $app->do('DROP EXTENSION coord');
  $app->do('CREATE EXTENSION coord');
  foreach my $of ([ 'the session that did it', $app ], [ 'one that held a lease', $left ], [ 'another', $right ], [ 'a new one', session($node, 'app') ])
  {
    my ($who, $dbh) = @$of;
    is(one($dbh, 'SELECT count(*) FROM coord.leases'), 0, "after DROP and CREATE EXTENSION: no leases, for $who");
    like(error_of($dbh, q{SELECT coord.fence_check('held', ?)}, $token), qr/^ZC002/, 'a token from before is stale');
    my $next = acquire($dbh, 'held', $who);
    cmp_ok($next // 0, '>', $token, 'it can be acquired, with a higher token');
    $token = $next // $token;
    is(release($dbh, 'held', $token), 1, 'and released');
    like(acquire($dbh, 'dropped', $who), qr/^\d+$/, 'what was a semaphore is a lease');
    is(one($dbh, q{SELECT coord.lease_break('dropped')}), 1, 'that can be broken');
  }
  is(one($right, q{SELECT coord.try_lock('kept')}), undef, 'a lock of a session is held by it still');
  is(one($right, q{SELECT string_agg(name || ' ' || pid, ',') FROM coord.locks}), "kept $left->{pg_pid}", 'and coord.locks says so');
  is(one($left, q{SELECT coord.unlock('kept')}), 1, 'it can be unlocked');
  is(one($right, q{SELECT count(*) FROM coord.locks}), 0, 'then nothing is held');
}

is(one($app, 'SELECT count(*) FROM coord.stuck'), 0, 'nothing is stuck');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal/, 'no crashes');
disconnect_all();
$node->stop;
done_testing();
