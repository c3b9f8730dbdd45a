# The order in which a resolver reads: whoever has read that a transaction is active, or
# is not, while the transaction goes on beside it, neither rolls back what is committed
# nor commits what is not.  Each cell stops a transaction at a point of its way and
# somebody who resolves between two readings, and lets them go in both orders.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTwophase;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @participants = map { new_participant($_) } qw(p1 p2);
my $main = new_coordinator('main', \@participants);
my @nodes = ($main, @participants);
my $number = 0;

sub begin_transfer
{
  my ($point) = @_;
  my $client = reconnect($main);
  my $name = 'transfer ' . ++$number;
  my $gate = gate_at($main, "twophase_$point");
  $client->do("SET coord.debug_point = 'wait:twophase_$point'");
  $client->do('BEGIN');
  $client->do('INSERT INTO mark VALUES (?)', undef, $name);
  one($client, q{SELECT coord.remote_exec(?, 'INSERT INTO mark VALUES ($1)', jsonb_build_array(?::text))}, $_->name, $name)
    foreach @participants;
  send_async($client, 'COMMIT');
  ok(wait_at_gate($gate, "twophase_$point"), "$name is at $point");
  return ($client, $name, $gate);
}

# Somebody who resolves, stopped at a point.
sub begin_look
{
  my ($point) = @_;
  my $looker = reconnect($main);
  my $gate = gate_at($main, $point);
  $looker->do("SET coord.debug_point = 'wait:$point'");
  send_async($looker, q{SELECT count(*) FROM coord.twophase_resolve('p1')});
  ok(wait_at_gate($gate, $point), "who looks is at $point");
  return ($looker, $gate);
}

sub ended
{
  my ($what, $name, $expected) = @_;
  is(settled(@nodes), '', "$what: nothing is left");
  is(marks($name, @nodes), $expected, "$what: where it happened");
  return;
}

foreach my $point (qw(prepared decided committed))
{
  foreach my $first (qw(transaction look))
  {
    foreach my $cancel (0, 1)
    {
      next if $cancel && $point eq 'committed';
      my $what = "$point, the $first goes on first" . ($cancel ? ', cancelled' : '');
      my ($client, $name, $gate) = begin_transfer($point);
      my ($looker, $look_gate) = begin_look('resolver_active_read');
      my $killer = reconnect($main);
      my $go_on = sub {
        one($killer, 'SELECT pg_cancel_backend(?)', $client->{pg_pid}) if $cancel;
        open_gate($gate);
        my $answer = answer_of($client);
        like($answer, $cancel ? qr/^(57014|ZC010)/ : qr/^ok/, "$what: the client");
      };
      $go_on->() if $first eq 'transaction';
      open_gate($look_gate);
      is(answer_of($looker), 'ok', "$what: who looks");
      $go_on->() if $first eq 'look';
      ended($what, $name, $cancel ? '' : 'main p1 p2');
      eval { $_->disconnect } foreach $client, $looker, $killer;
    }
  }
}

# The list has been read, without the transaction: it comes, and all of it, before the
# decisions are read.
{
  my ($client, $name, $gate) = begin_transfer('prepared');
  my ($looker, $look_gate) = begin_look('resolver_active_read');
  my ($other, $other_name, $other_gate) = begin_transfer('decided');
  open_gate($other_gate);
  is(answer_of($other), 'ok', 'another transaction, from PREPARE to the end, while somebody looks');
  open_gate($look_gate);
  is(answer_of($looker), 'ok', 'who looks');
  open_gate($gate);
  is(answer_of($client), 'ok', 'the first one');
  ended('the one that was listed', $name, 'main p1 p2');
  ended('the one that was not', $other_name, 'main p1 p2');
  $_->disconnect foreach $client, $looker, $other;
}

unlike(slurp_file($main->logfile), qr/PANIC|TRAP:/, 'nothing worse than that in the log');
$_->stop foreach @nodes;
done_testing();
