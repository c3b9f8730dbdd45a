# Two-phase commit, crashed at every point: whoever dies, hangs or is interrupted, and
# wherever, a transfer over three clusters happens on all of them or on none, and a
# little later nothing is left of it, without an operator.
#
# A process stops at a debug point, where it is seen to wait, and then something
# happens to it, to its server or to a participant.  F1 to F16 are the rows of the table
# of crashes in doc/twophase.md; F13 and F17 to F20 are in 062_twophase_cases.
#
# COORD_SHORT=1 leaves out combinations, but no point and no kind of failure.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTwophase;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $short = $ENV{COORD_SHORT};

my @participants = map { new_participant($_, allows_streaming => 1) } qw(p1 p2);
my $main = new_coordinator('main', \@participants);
my @nodes = ($main, @participants);
my $total = total(@nodes);
my $number = 0;

# Whether a transfer that is interrupted there has happened, and which row it is for
# the coordinator's and for a participant's death.
my @points = (
  [ before_prepare => 0, 'F1', 'F4' ],
  [ preparing => 0, 'F2', 'F4' ],
  [ prepared => 0, 'F9', 'F5' ],
  [ decided => 0, 'F10', 'F5' ],
  [ committed => 1, 'F11', 'F15' ],
  [ telling => 1, 'F14', 'F15' ],
  [ told => 1, 'F14', 'F16' ],
  [ acknowledged => 1, 'F14', 'F16' ]);

# A session that is to commit a transfer: the session, its transfer's name, its global
# id if it is known, and the statement that commits.
sub begin_transfer
{
  my ($way, %settings) = @_;
  my $client = reconnect($main);
  my $name = 'transfer ' . ++$number;
  $client->do("SET $_ = '$settings{$_}'") foreach sort keys %settings;
  return ($client, $name, undef, 'CALL coord.twophase_run(' . transfer_branches($name, 'p1', 'p2') . ')')
    if $way eq 'run';
  $client->do('BEGIN');
  my $gtid = one($client, 'SELECT coord.twophase_current()');
  $client->do('INSERT INTO mark VALUES (?)', undef, $name);
  $client->do('UPDATE acc SET bal = bal - 2 WHERE id = 1');
  one($client, q{SELECT coord.remote_exec(?, 'WITH m AS (INSERT INTO mark VALUES ($1)) UPDATE acc SET bal = bal + 1 WHERE id = 1',
    jsonb_build_array(?::text))}, $_->name, $name) foreach @participants;
  return ($client, $name, $gtid, 'COMMIT');
}

# Nothing is left, and the transfer is where $expected says: 'all', 'none', or either
# of them; "" when it is so.
sub fault_of
{
  my ($name, $gtid, $expected, $answer) = @_;
  my $left = settled(@nodes);
  return "left: $left" if $left;
  my $marks = marks($name, @nodes);
  my $where = $marks eq 'main p1 p2' ? 'all' : $marks eq '' ? 'none' : "some: $marks";
  return "it happened at $where, the client saw: $answer" unless $where =~ /^(?:$expected)$/;
  return 'the total is not what it was' if total(@nodes) != $total;
  if ($gtid)
  {
    my $dbh = reconnect($main);
    my $outcome = one($dbh, 'SELECT coord.twophase_outcome(?)', $gtid);
    $dbh->disconnect;
    return "twophase_outcome() says $outcome, it happened at $where"
      if $outcome ne ($where eq 'all' ? 'committed' : 'aborted');
  }
  return '';
}

### The coordinator

# $kind: error, kill, stop, terminate, cancel
sub coordinator_cell
{
  my ($way, $kind, $point, $happens, $row, %settings) = @_;
  my $cell = "$row: $kind at $point, $way";
  my ($client, $name, $gtid, $commit) = begin_transfer($way, %settings,
    'coord.debug_point' => ($kind eq 'error' ? 'error' : 'wait') . ":twophase_$point");
  my $answer;
  my $fired;
  if ($kind eq 'error')
  {
    send_async($client, $commit);
    $answer = answer_of($client);
    $fired = $answer =~ /debug point "twophase_$point"/;
  }
  else
  {
    my $gate = gate_at($main, "twophase_$point");
    my $killer = reconnect($main);
    send_async($client, $commit);
    my $pid = wait_at_gate($gate, "twophase_$point");
    $fired = $pid && $pid == $client->{pg_pid};
    kill 'KILL', $pid if $fired && $kind eq 'kill';
    $main->stop('immediate') if $kind eq 'stop';
    one($killer, 'SELECT pg_terminate_backend(?)', $pid) if $kind eq 'terminate';
    one($killer, 'SELECT pg_cancel_backend(?)', $pid) if $kind eq 'cancel';
    open_gate($gate);
    $answer = answer_of($client);
    restart_dead($main) if $kind eq 'stop';
    eval { $killer->disconnect };
  }
  ok($fired, "$cell: fired") or diag($answer);
  eval { $client->disconnect };

  # What was interrupted after the decision has happened, and is no error of COMMIT's.
  my %seen = (error => qr/^XX000/, kill => qr/^lost/, stop => qr/^lost/, terminate => $happens ? qr/^(lost|ok)/ : qr/^lost/,
    cancel => $happens && $way eq 'commit' ? qr/^ok/ : qr/^(57014|ZC010)/);
  like($answer, $seen{$kind}, "$cell: what the client saw");
  is(fault_of($name, $gtid, $happens ? 'all' : 'none', $answer), '', "$cell: all or none, nothing is left");
  return;
}

### A participant

# $kind: kill, stop, hang
sub participant_cell
{
  my ($way, $kind, $participant, $point, $happens, $row) = @_;
  my $cell = "$row: $kind of " . $participant->name . " at $point, $way";
  my ($client, $name, $gtid, $commit) = begin_transfer($way, 'coord.debug_point' => "wait:twophase_$point",
    $kind eq 'hang' ? ('coord.twophase_prepare_timeout' => '500ms', 'coord.twophase_phase2_timeout' => '500ms') : ());
  my $gate = gate_at($main, "twophase_$point");
  my @stopped;
  send_async($client, $commit);
  ok(wait_at_gate($gate, "twophase_$point"), "$cell: fired");
  kill_postmaster($participant) if $kind eq 'kill';
  $participant->stop('immediate') if $kind eq 'stop';
  @stopped = stop_processes($participant) if $kind eq 'hang';
  open_gate($gate);
  my $answer = answer_of($client);
  eval { $client->disconnect };
  restart_dead($participant) if $kind ne 'hang';
  continue_processes(@stopped);
  like($answer, $happens ? qr/^ok/ : qr/^(ok|ZC010)/, "$cell: what the client saw");
  is(fault_of($name, $gtid, $answer eq 'ok' ? 'all' : 'none', $answer), '', "$cell: all or none, nothing is left");
  return;
}

# The first use of the participants.
{
  my ($client, $name, $gtid, $commit) = begin_transfer('commit');
  send_async($client, $commit);
  is(answer_of($client), 'ok', 'a transfer');
  is(fault_of($name, $gtid, 'all', 'ok'), '', 'a transfer: all, and nothing is left');
  $client->disconnect;
}

my $cells = 0;
foreach my $p (@points)
{
  my ($point, $happens, $row, $participant_row) = @$p;
  foreach my $way (qw(commit run))
  {
    foreach my $kind (qw(kill stop terminate cancel error))
    {
      # In the callback of COMMIT nothing may raise an error.
      next if $kind eq 'error' && $happens && $way eq 'commit';
      next if $short && $cells++ % 4 != 0;
      my $named = $kind eq 'terminate' || $kind eq 'cancel' ? "$row, F8" : $row;
      coordinator_cell($way, $kind, $point, $happens, $named);
    }
  }
  foreach my $participant (@participants)
  {
    foreach my $kind (qw(kill stop hang))
    {
      my $way = $cells++ % 2 ? 'run' : 'commit';
      next if $short && $cells % 4 != 0;
      participant_cell($way, $kind, $participant, $point, $happens, $kind eq 'hang' && !$happens ? 'F6' : $participant_row);
    }
  }
}

### What a participant answers, or does not

sub backend_at
{
  my ($participant) = @_;
  my $dbh = reconnect($participant);
  my $pid = one($dbh, q{SELECT pid FROM pg_stat_activity WHERE application_name = 'coord' AND state = 'idle in transaction'});
  $dbh->disconnect;
  return $pid;
}

sub at_participant
{
  my ($participant, $sql) = @_;
  my $dbh = reconnect($participant);
  $dbh->do($_) foreach ref $sql ? @$sql : $sql;
  $dbh->disconnect;
  return;
}

# F3: a participant rejects PREPARE.
{
  at_participant($participants[1], q{CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)});
  foreach (
    [ 'a deferred constraint', q{INSERT INTO late VALUES (1), (1)}, '23505' ],
    [ 'a temporary table', q{CREATE TEMP TABLE own AS SELECT 1 AS x}, '0A000' ],
    [ 'a notification', q{NOTIFY something}, '0A000' ])
  {
    my ($what, $sql, $sqlstate) = @$_;
    my ($client, $name, $gtid, $commit) = begin_transfer('commit');
    one($client, q{SELECT coord.remote_exec('p2', ?)}, $sql);
    my $answer = error_of($client, $commit);
    like($answer, qr/^ZC010 participant "p2": .*It answered with SQLSTATE $sqlstate\./s, "F3: $what: the error");
    $client->disconnect;
    is(fault_of($name, $gtid, 'none', $answer), '', "F3: $what: none, nothing is left");
  }
}

# F5 and F7: PREPARE is on disk at a participant, which waits for a standby that is not
# there; the coordinator gives up, or the participant dies before it has answered.
foreach my $kind ('F5: PREPARE is durable, the answer is lost', 'F7: PREPARE waits for a standby')
{
  is(want_standby($participants[1], 'nobody'), 1, "$kind: a synchronous standby is wanted");
  my $watch = reconnect($participants[1]);
  my ($client, $name, $gtid, $commit) = begin_transfer('commit',
    'coord.twophase_prepare_timeout' => $kind =~ /^F7/ ? '1s' : '60s');
  send_async($client, $commit);
  is(wait_until($watch, 1, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'}), 1, "$kind: fired");
  if ($kind =~ /^F5/)
  {
    $participants[1]->stop('immediate');
    restart_dead($participants[1]);
  }
  my $answer = answer_of($client);
  like($answer, qr/^ZC010/, "$kind: what the client saw");
  eval { $watch->disconnect };
  at_participant($participants[1], [ q{ALTER SYSTEM RESET synchronous_standby_names}, q{SELECT pg_reload_conf()} ]);
  is(fault_of($name, $gtid, 'none', $answer), '', "$kind: none, nothing is left");
  $client->disconnect;
}

# F6: the coordinator gives up waiting for a vote and its resolver has looked; then the
# PREPARE that was on its way is carried out.
foreach my $killed (0, 1)
{
  my $cell = $killed ? 'F2: PREPARE arrives after the coordinator has crashed' : 'F6: PREPARE arrives late';
  my $dbh = reconnect($main);
  one($dbh, q{SELECT count(*) FROM coord.twophase_resolve()});
  my ($client, $name, $gtid, $commit) = begin_transfer('commit', 'coord.twophase_prepare_timeout' => '200ms',
    'coord.debug_point' => 'wait:twophase_preparing');
  my $gate = gate_at($main, 'twophase_preparing');
  my $backend = backend_at($participants[1]);
  ok($backend && kill('STOP', $backend), "$cell: fired");
  my $looked = one($dbh, q{SELECT clock_timestamp()});
  send_async($client, $commit);
  my $pid = wait_at_gate($gate, 'twophase_preparing');
  kill 'KILL', $pid if $killed && $pid;
  open_gate($gate);
  my $answer = answer_of($client);
  like($answer, $killed ? qr/^lost/ : qr/^ZC010/, "$cell: what the client saw");
  eval { $dbh->disconnect };
  $dbh = reconnect($main);
  is(wait_until($dbh, 1, q{SELECT count(*) FROM coord.twophase_servers WHERE server_name = 'p2' AND seen_at > ?}, $looked), 1,
    "$cell: the resolver has looked before");
  is(our_gids($participants[1]), 0, "$cell: it was not there yet");
  kill 'CONT', $backend;
  my $watch = reconnect($participants[1]);
  is(wait_until($watch, 0, q{SELECT count(*) FROM pg_stat_activity WHERE pid = ?}, $backend), 0, "$cell: its session has ended");
  is(fault_of($name, $gtid, 'none', $answer), '', "$cell: none, nothing is left");
  eval { $_->disconnect } foreach $client, $dbh, $watch;
}

# F12: the session does not want to wait for the disk; the decision is there nevertheless.
foreach my $way (qw(commit run))
{
  coordinator_cell($way, 'stop', 'committed', 1, "F12: synchronous_commit = $_", synchronous_commit => $_)
    foreach $short ? 'off' : qw(off local);
}

### The resolver

# F26: it dies while it finishes what another left behind, before or after it told
# a participant, and before it has written down that it did.
foreach my $point (qw(resolver_active_read resolver_before_action resolver_acted resolver_before_note))
{
  foreach my $decided (1, 0)
  {
    next if $short && !$decided && $point ne 'resolver_acted';
    my $cell = "F26: the resolver dies at $point, " . ($decided ? 'decided' : 'not decided');
    at_participant($main, [ qq{ALTER SYSTEM SET coord.debug_point = 'wait:$point'}, q{SELECT pg_reload_conf()} ]);
    my $stage = 'twophase_' . ($decided ? 'committed' : 'prepared');
    my ($client, $name, $gtid, $commit) = begin_transfer('commit', 'coord.debug_point' => "wait:$stage");
    my $gate = gate_at($main, $stage);
    send_async($client, $commit);
    my $pid = wait_at_gate($gate, $stage);

    # While the lock is not held nobody waits: it must be taken as soon as the server
    # is there again, before the resolver comes.  So the server is stopped, and started
    # where the resolver cannot reach the participants yet.
    $main->stop('immediate');
    answer_of($client);
    eval { $_->disconnect } foreach $client, $gate;
    my @stopped = map { stop_processes($_) } @participants;
    restart_dead($main);
    $gate = gate_at($main, $point);
    continue_processes(@stopped);
    $pid = wait_at_gate($gate, $point);
    ok($pid, "$cell: fired");
    my $kind = one($gate, q{SELECT backend_type FROM pg_stat_activity WHERE pid = ?}, $pid);
    is($kind, 'coord resolver', "$cell: it is the resolver");
    kill 'KILL', $pid if $pid;
    is(wait_until(reconnect($main), 1, q{SELECT 1}), 1, "$cell: the server is there again");
    open_gate($gate);
    is(fault_of($name, $gtid, $decided ? 'all' : 'none', 'lost'), '', "$cell: all or none, nothing is left");
  }
}
at_participant($main, [ q{ALTER SYSTEM RESET coord.debug_point}, q{SELECT pg_reload_conf()} ]);

unlike(slurp_file($main->logfile), qr/PANIC|TRAP:/, 'nothing worse than that in the log');
$_->stop foreach @nodes;
done_testing();
