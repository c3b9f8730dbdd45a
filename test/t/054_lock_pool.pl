# Locks and leases through PgBouncer in transaction mode with two connections, and
# without shared_preload_libraries.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordLocks;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = new_cluster('pooled', 'coord.worker_idle_timeout' => '1s');
my $direct = session($node, 'postgres');
install_sagas($direct);
$direct->do('CREATE TABLE written (by text, n int)');
my $bouncer = start_bouncer($node, 'postgres');
my @client = map { pooled($bouncer) } 1 .. 6;

sub held
{
  return one($direct, q{SELECT coalesce(string_agg(concat_ws(' ', name, mode, scope), ', ' ORDER BY name), '') FROM coord.locks});
}

# Keeps one of the two connections busy, so that the next statement takes the other.
sub busy
{
  my ($client) = @_;
  $client->begin_work;
  return one($client, 'SELECT pg_backend_pid()');
}

### Leases

# Acquired in one connection, renewed, checked and released in the other.
{
  my $pid = busy($client[5]);
  my $token = acquire($client[0], 'lease', 'client 0', ttl => '1 min');
  my $where = one($client[0], 'SELECT pg_backend_pid()');
  isnt($where, $pid, 'there are two connections');
  $client[5]->commit;
  busy($client[4]) == $where or do { busy($client[5]); $client[4]->commit };
  # Now $where is busy, by one of them.
  is(one($client[1], 'SELECT pg_backend_pid()'), $pid, 'the next statement is in the other connection');
  is(acquire($client[1], 'lease', 'client 1'), undef, 'a lease is held whichever connection asks');
  is(acquire($client[1], 'lease', 'client 0', ttl => '1 min'), $token, 'its owner gets the same token');
  is(error_of($client[1], q{SELECT coord.lease_renew('lease', ?)}, $token), 'no error', 'renews it');
  $client[1]->begin_work;
  is(error_of($client[1], q{SELECT coord.fence_check('lease', ?)}, $token), 'no error', 'checks it');
  $client[1]->do(q{INSERT INTO written VALUES ('client 0', 1)});
  $client[1]->commit;
  is(release($client[1], 'lease', $token), 1, 'and releases it there');
  $_->rollback foreach grep { !$_->{AutoCommit} } @client;
  like(error_of($client[2], q{SELECT coord.fence_check('lease', ?)}, $token), qr/^ZC002/, 'then its token is stale, wherever');
}

# More wait than there are connections; each gets it once.
{
  my $token = acquire($direct, 'queue', 'direct', ttl => '1 min');
  my @waits = map { later($client[$_], q{SELECT token FROM coord.lease_acquire('queue', ?, timeout => '20 s')}, "client $_") } 0 .. 3;
  wait_until($direct, 2, q{SELECT count(*) FROM coord.lock_waiters WHERE name = 'queue'});
  release($direct, 'queue', $token);
  my %tokens;
  # The connections belong to whoever waits, so each goes on as one of them is let go.
  my @left = 0 .. 3;
  my $end = time + 30;
  while (@left && time < $end)
  {
    my ($ready) = grep { $client[$_]->pg_ready } @left;
    defined $ready or do { sleep 0.01; next };
    my $got = outcome($waits[$ready]);
    $tokens{$ready} = $got;
    @left = grep { $_ != $ready } @left;
    release($direct, 'queue', $got);
  }
  is(join(' ', sort keys %tokens), '0 1 2 3', 'four wait for a lease on two connections, and each gets it');
  my %different = map { $_ => 1 } values %tokens;
  is(scalar(keys %different), 4, 'with a token of its own');
}

# Elections and semaphores.
{
  my @is = map { $_->[0] } map { $client[$_]->selectrow_arrayref(q{SELECT is_leader::int, token FROM coord.leader_campaign('boss', ?)}, undef, "client $_") }
    0 .. 3;
  is("@is", '1 0 0 0', 'one of four leads');
  is(one($client[4], q{SELECT leader FROM coord.leaders}), 'client 0', 'coord.leaders says who');
  my $token = one($client[3], q{SELECT token FROM coord.leader_campaign('boss', 'client 0')});
  $client[2]->begin_work;
  is(error_of($client[2], q{SELECT coord.fence_check('boss', ?)}, $token), 'no error', 'its token can be checked');
  is(one($client[3], q{SELECT coord.leader_resign('boss', 'client 0')}), 1, 'it resigns in another connection');
  is(one($client[3], q{SELECT is_leader::int FROM coord.leader_campaign('boss', 'client 1')}), 0,
    'nobody leads while a transaction of the last one is open');
  $client[2]->commit;
  is(one($client[3], q{SELECT is_leader::int FROM coord.leader_campaign('boss', 'client 1')}), 1, 'then another does');
  one($client[0], q{SELECT coord.leader_resign('boss', 'client 1')});

  one($client[0], q{SELECT coord.semaphore_create('permits', 2)});
  my @permits = map { acquire($client[$_], 'permits', "client $_") } 0 .. 2;
  is(scalar(grep { defined } @permits), 2, 'two of three get permits');
  is(release($client[3], 'permits', $permits[0]), 1, 'one is given back in another connection');
  ok(acquire($client[4], 'permits', 'client 2'), 'and then the third has it');
  is(one($client[5], q{SELECT coord.once_per('daily', '1 day')}), 1, 'once_per()');
  is(one($client[0], q{SELECT coord.once_per('daily', '1 day')}), 0, 'and no more');
}

### Locks of the transaction

{
  $client[0]->begin_work;
  my $token = one($client[0], q{SELECT coord.lock('row')});
  is(one($client[1], q{SELECT coord.try_lock('row')}), undef, 'a lock of the transaction excludes another client');
  is(held(), 'row exclusive transaction', 'coord.locks has it');
  $client[0]->commit;
  is(held(), '', 'and has it no more after COMMIT');
  cmp_ok(one($client[1], q{SELECT coord.try_lock('row')}), '>', $token, 'then the other gets it');

  # A counter by many, in as many connections as there are.
  $direct->do(q{INSERT INTO written VALUES ('counter', 0)});
  foreach my $round (1 .. 10)
  {
    my @all = map { later($client[$_], q{WITH l AS MATERIALIZED (SELECT coord.lock('counter')) SELECT token FROM l, LATERAL (SELECT lock AS token) t}) } 0 .. 5;
    my @tokens = map { outcome($_) } @all;
    my %seen = map { $_ => 1 } @tokens;
    is(scalar(keys %seen), 6, 'six lock it at once, each with its token') if $round == 10;
  }
  is(held(), '', 'nothing is held');
}

### Locks of the session: what the documentation warns of

{
  # It stays with the connection when its client has gone.
  my $pid = busy($client[5]);
  my $token = one($client[0], q{SELECT coord.lock('session', scope => 'session')});
  my $where = one($direct, q{SELECT pid FROM coord.locks WHERE name = 'session'});
  isnt($where, $pid, 'a lock of the session is the connection\'s');
  $client[0]->disconnect;
  is(held(), 'session exclusive session', 'its client has gone, and it is held');
  is(one($direct, q{SELECT coord.try_lock('session')}), undef, 'so nobody else gets it');
  # Whoever comes next in that connection has it as his own, and can let go of it.
  is(one($client[1], q{SELECT coord.lock('session', scope => 'session')}), $token, 'but for a stranger in the same connection');
  is(one($client[2], q{SELECT coord.unlock('session')}), 1, 'strangers unlock it');
  is(one($client[3], q{SELECT coord.unlock('session')}), 1, 'as often as it was locked');
  is(held(), '', 'then nothing is held');

  # DISCARD ALL of one client drops what another has locked.
  $token = one($client[1], q{SELECT coord.lock('session', scope => 'session')});
  $client[2]->do('DISCARD ALL');
  is(held(), '', 'DISCARD ALL of another client releases it, and coord.locks says so');
  like(error_of($client[3], q{SELECT coord.fence_check('session', ?)}, $token), qr/^ZC002/, 'and its token is stale');
  is(one($client[1], q{SELECT coord.unlock('session')}), 0, 'there is nothing to unlock');
  cmp_ok(one($direct, q{SELECT coord.lock('session')}), '>', $token, 'others get it');

  # And pg_advisory_unlock_all().
  one($client[1], q{SELECT coord.lock('session', scope => 'session')});
  $client[2]->do('SELECT pg_advisory_unlock_all()');
  is(held(), '', 'so does pg_advisory_unlock_all()');
  $client[5]->rollback;
  $client[0] = pooled($bouncer);
}

### Strangers' DISCARD ALL, and the engine

{
  my $lease = acquire($client[0], 'kept', 'client 0', ttl => '1 min');
  $direct->do('TRUNCATE effect');
  my @id = map { one($client[ $_ % 6 ], q{SELECT coord.saga_start('quick')}) } 1 .. 30;
  foreach my $round (1 .. 10)
  {
    $client[ $round % 6 ]->do($round % 2 ? 'DISCARD ALL' : 'SELECT pg_advisory_unlock_all()');
    $client[ ($round + 1) % 6 ]->do('CALL coord.run_pending()');
  }
  eventually('sagas are done', $direct, 30, q{SELECT count(*) FROM coord.sagas WHERE status = 'completed'});
  is(one($direct, q{SELECT string_agg(DISTINCT n::text, ',') || ' ' || count(*) FROM (
    SELECT count(*) AS n FROM effect GROUP BY saga, step) t}), '1 60', 'each step once');
  is(error_of($client[1], q{SELECT coord.lease_renew('kept', ?)}, $lease), 'no error', 'a lease is none of a session\'s');
  is(release($client[2], 'kept', $lease), 1, 'and is released');
}

is(one($direct, q{SELECT count(*) <= 2 FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()}),
  1, 'all that took two connections');
is(one($direct, 'SELECT count(*) FROM coord.lock_waiters'), 0, 'nobody waits');
$_->disconnect foreach @client, $direct;
stop_bouncer($bouncer);
$node->stop;

### Without preload

configure($node, shared_preload_libraries => '', client_connection_check_interval => '50ms');
$node->start;
$direct = session($node, 'postgres');
my ($left, $right) = map { session($node, 'postgres') } 1 .. 2;
is(one($direct, 'SHOW shared_preload_libraries'), '', 'nothing is preloaded');
is(one($direct, q{SELECT string_agg(name || ' ' || owner, ', ' ORDER BY owner) FROM coord.leases}), 'permits client 1, permits client 2',
  'what was granted before is there');
is(one($direct, q{SELECT coord.lease_break('permits')}), 1, 'and can be broken');

{
  my $token = one($left, q{SELECT coord.lock('name', scope => 'session')});
  is(one($right, q{SELECT coord.try_lock('name')}), undef, 'a lock excludes another session');
  my $waits = later($right, q{SELECT coord.lock('name')});
  ok(wait_for_waiters($direct, 'name', $right->{pg_pid}), 'who waits is in coord.lock_waiters');
  is(one($direct, q{SELECT pid || ' ' || waiters FROM coord.locks WHERE name = 'name'}), "$left->{pg_pid} 1", 'who holds is in coord.locks');
  one($left, q{SELECT coord.unlock('name')});
  cmp_ok(outcome($waits), '>', $token, 'it goes to who waits');
  is(one($left, q{SELECT cardinality(coord.lock_many('{a,b,c}'))}), 3, 'lock_many()');

  $token = acquire($left, 'lease', 'left', ttl => '1 min');
  is(acquire($right, 'lease', 'right'), undef, 'so does a lease');
  $waits = later($right, q{SELECT token FROM coord.lease_acquire('lease', 'right', timeout => '20 s')});
  wait_for_waiters($direct, 'lease', $right->{pg_pid});
  is(release($left, 'lease', $token), 1, 'it is released');
  my $next = outcome($waits);
  cmp_ok($next, '>', $token, 'and goes to who waits');
  like(error_of($left, q{SELECT coord.fence_check('lease', ?)}, $token), qr/^ZC002/, 'the token is stale');
  is(error_of($left, q{SELECT coord.fence_check('lease', ?)}, $next), 'no error', 'the next is not');
  release($right, 'lease', $next);

  # Nobody but those who ask sees that a time is over.
  $token = acquire($left, 'short', 'left', ttl => '100 ms');
  cmp_ok(acquire($right, 'short', 'right', ttl => '1 min', timeout => '20 s'), '>', $token, 'a lease comes to its end');
  $token = one($left, q{SELECT token FROM coord.leader_campaign('boss', 'left', '1 min')});
  is(one($right, q{SELECT leader FROM coord.leader_campaign('boss', 'right')}), 'left', 'elections');
  is(one($left, q{SELECT coord.once_per('daily', '1 day')}), 0, 'once_per() remembers');

  # A standstill.
  $_->disconnect foreach $left, $right, $direct;
  $node->stop('immediate');
  $node->start;
  ($direct, $left, $right) = map { session($node, 'postgres') } 1 .. 3;
  is(one($direct, q{SELECT string_agg(name || ' ' || owner, ', ' ORDER BY name) FROM coord.leases}), 'boss left, short right',
    'leases after a restart');
  is(acquire($left, 'boss', 'other'), undef, 'are held');
  is(error_of($left, q{SELECT coord.lease_renew('boss', ?)}, $token), 'no error', 'by their owners');
  cmp_ok(one($left, q{SELECT coord.lock('name')}), '>', $token, 'and tokens grow');
  one($direct, q{SELECT coord.lease_break(?)}, $_) foreach qw(boss short);
}

# From start to end in a session that has not loaded the library before.
{
  my $new = session($node, 'postgres');
  is(one($new, 'SELECT count(*) FROM coord.locks'), 0, 'coord.locks in a new session');
  is(one($new, 'SELECT count(*) FROM coord.leases'), 0, 'coord.leases');
  $new->disconnect;
}
is(one($direct, 'SELECT count(*) FROM coord_internal.lease'), 0, 'no row is left');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal/, 'no crashes');
$_->disconnect foreach $left, $right, $direct;
$node->stop;
done_testing();
