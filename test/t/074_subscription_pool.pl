# Consumers behind PgBouncer in transaction mode with two connections: a poll, and what is
# said of it, come through whichever of them, beside drivers that prepare statements.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordLocks;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('pooled', 'coord.worker_idle_timeout' => '1s');
my $direct = session($node, 'postgres');
$direct->do('CREATE EXTENSION coord');
$direct->do(q{SELECT coord.subscribe('s', '{p}')});
my $bouncer = start_bouncer($node, 'postgres');
my @client = map { pooled($bouncer) } 1 .. 6;
my $all = 600;
one($direct, q{SELECT coord.publish('p', to_jsonb(n), 'key ' || n % 50) FROM generate_series(1, ?::int) n}, $all);

# Keeps a connection busy, so that the next statement takes the other.
sub busy
{
  my ($client) = @_;
  $client->begin_work;
  return one($client, 'SELECT pg_backend_pid()');
}

# A poll in one connection, its ack in the other.
my $busy = busy($client[5]);
my $events = $client[0]->selectall_arrayref(q{SELECT pg_backend_pid(), token, pos FROM coord.subscription_poll('s', 10)});
is(scalar(@$events), 10, 'polled');
isnt($events->[0][0], $busy, 'in one connection');
$client[5]->rollback;
my $other = busy($client[4]);
if ($other != $events->[0][0])
{
  busy($client[5]);
  $client[4]->rollback;
}
my ($pid, $acked) = $client[1]->selectrow_array(q{SELECT pg_backend_pid(), coord.subscription_ack('s', ?)}, undef, $events->[0][1]);
isnt($pid, $events->[0][0], 'acknowledged in the other');
is($acked, 1, 'all of it');
$_->rollback foreach grep { !$_->{AutoCommit} } @client;

# Clients that come and go, with more of them than connections.
my %seen;
$seen{ $_->[2] }++ foreach @$events;
my $rounds = 0;
while (keys %seen < $all && $rounds++ < 1000)
{
  my $client = $client[rand @client];
  my $some = $client->selectall_arrayref(q{SELECT token, pos FROM coord.subscription_poll('s', ?)}, undef, 1 + int rand 30);
  next if !@$some;
  if (rand() < 0.1)
  {
    one($client[rand @client], q{SELECT coord.subscription_nack('s', ?)}, $some->[0][0]);
    next;
  }
  my $done = rand() < 0.1 ? 1 + int rand @$some : scalar @$some;
  one($client[rand @client], q{SELECT coord.subscription_ack('s', ?, ?)}, $some->[0][0], $some->[$done - 1][1]);
  $seen{ $_->[1] }++ foreach @$some[0 .. $done - 1];
}
is(scalar(keys %seen), $all, 'every event is acknowledged');
is((grep { $seen{$_} != 1 } keys %seen) + 0, 0, 'once, since no lease ended');
is(join(',', $direct->selectrow_array(q{SELECT waiting, parked, leased, lag_events FROM coord.subscriptions})), '0,0,0,0', 'nothing is left');
is(scalar(@{ $client[0]->selectall_arrayref(q{SELECT * FROM coord.subscription_poll('s')}) }), 0, 'nor to poll');

# Waiting holds a connection, no longer than it is said.
one($direct, q{SELECT coord.publish('p')});
is(one($client[0], q{CALL coord.await('subscription', 's', '10 s')}), 1, 'await through the pool');
$_->disconnect foreach @client;
stop_bouncer($bouncer);
$node->stop;
done_testing();
