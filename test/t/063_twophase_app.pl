# Two-phase commits of applications: functions, a worker outside and a server say yes or
# no together, whoever dies, and wherever; nobody decides alone, and nothing is left.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTasks;
use CoordTwophase;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $participant = new_participant('p1');
my $main = new_coordinator('main', [$participant]);
my $dbh = reconnect($main);
my $number = 0;

# The functions' effects, once each; what is in "hindrance" fails.
$dbh->do($_) foreach (
  q{CREATE TABLE effect (gtid bigint, participant text, phase text, pid int, PRIMARY KEY (gtid, participant, phase))},
  q{CREATE TABLE hindrance (participant text, phase text)},
  q{CREATE FUNCTION act(doc jsonb, phase text) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
      INSERT INTO public.effect VALUES ((doc ->> 'gtid')::bigint, doc ->> 'participant', act.phase, pg_backend_pid());
      RETURN NOT EXISTS (SELECT FROM public.hindrance h WHERE h.participant = doc ->> 'participant' AND h.phase = act.phase);
    END $$},
  q{CREATE FUNCTION prepare(doc jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT public.act(doc, 'prepare') $$},
  q{CREATE FUNCTION confirm(doc jsonb) RETURNS void LANGUAGE sql AS $$ SELECT public.act(doc, 'commit') $$},
  q{CREATE FUNCTION cancel(doc jsonb) RETURNS void LANGUAGE sql AS $$ SELECT public.act(doc, 'abort') $$},
  q{CREATE FUNCTION slow(doc jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT pg_sleep(3600); SELECT true $$});

# The worker outside: what it was told of each transaction, in order.
my %told;

sub pump
{
  my ($session, %answers) = @_;
  foreach my $task (claim($session, 'cards', max_tasks => 10))
  {
    my ($gtid) = $task->{idempotency_key} =~ m{^(\d+)/card/\w+$} or die $task->{idempotency_key};
    push @{ $told{$gtid} }, $task->{phase} . ($task->{null_compensation} ? ' null' : '');
    if (($answers{ $task->{phase} } // 'yes') eq 'no')
    {
      $session->do('SELECT coord.task_fail(?, ?, ?)', undef, @$task{qw(task_id token)}, 'no money');
    }
    else
    {
      complete($session, $task);
    }
  }
  return;
}

sub told
{
  my ($gtid) = @_;
  return join ', ', @{ $told{$gtid} || [] };
}

sub effects
{
  my ($session, $gtid) = @_;
  return one($session, q{SELECT coalesce(string_agg(phase, ', ' ORDER BY phase DESC), '') FROM effect WHERE gtid = ?}, $gtid);
}

# A transaction of a function, a worker's task and a server: its id, and the name of the
# mark that it leaves.
sub begin_all
{
  my ($session, %options) = @_;
  my $name = 'application ' . ++$number;
  my $gtid = one($session, 'SELECT coord.twophase_begin(?, ?)', $name, $options{timeout} || '1 hour');
  $session->do(q{SELECT coord.twophase_enlist(?, 'bank', 'prepare', 'confirm', 'cancel')}, undef, $gtid);
  $session->do(q{SELECT coord.twophase_enlist(?, 'card', 'reserve', 'capture', 'release', queue => 'cards')}, undef, $gtid);
  $session->do(q{SELECT coord.twophase_enlist(?, 'p1', 'INSERT INTO mark VALUES ($1)', server => 'p1', payload => jsonb_build_array(?::text))},
    undef, $gtid, $options{mark} || $name);
  return ($gtid, $name);
}

# Pump until every participant is through.
sub finish
{
  my ($session, $gtid, %answers) = @_;
  my $end = time + 60;
  while (time < $end)
  {
    pump($session, %answers);
    last unless one($session, q{SELECT count(*) FROM coord.twophase_participants WHERE gtid = ? AND NOT (state IN ('committed', 'aborted')
      OR kind = 'server' AND state = 'enlisted')}, $gtid);
    sleep 0.02;
  }
  return one($session, q{SELECT string_agg(participant || ' ' || state, ', ' ORDER BY participant) FROM coord.twophase_participants WHERE gtid = ?}, $gtid);
}

# All of them, or none.
sub ended_well
{
  my ($test, $session, $gtid, $name, $outcome, %options) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  is(finish($session, $gtid), "bank $outcome, card $outcome, p1 $outcome", "$test: all are told");
  is(one($session, 'SELECT coord.twophase_outcome(?)', $gtid), $outcome, "$test: the outcome");
  my $committed = $outcome eq 'committed';
  is(effects($session, $gtid), $options{effects} // ($committed ? 'prepare, commit' : 'prepare, abort'), "$test: what the function did, once each");
  like(told($gtid), $options{told} // ($committed ? qr/^(prepare, )+commit$/ : qr/^(prepare, )*abort( null)?$/), "$test: what the worker was told");
  is(settled($main, $participant), '', "$test: nothing is left");
  is(marks($name, $participant), $committed ? 'p1' : '', "$test: what the server has");
  return;
}

# CALL from a session of its own, while the worker works; the answer.
sub commit_all
{
  my ($gtid, %answers) = @_;
  my $client = reconnect($main);
  send_async($client, "CALL coord.twophase_commit($gtid)");
  my $end = time + 60;
  until ($client->pg_ready || time > $end)
  {
    pump($dbh, %answers);
    sleep 0.01;
  }
  my $answer = answer_of($client);
  $client->disconnect;
  return $answer;
}

### All say yes, or one says no

my ($gtid, $name) = begin_all($dbh);
is(commit_all($gtid), 'ok', 'all say yes');
ended_well('all say yes', $dbh, $gtid, $name, 'committed', told => qr/^prepare, commit$/);

($gtid, $name) = begin_all($dbh);
is(commit_all($gtid, prepare => 'no'), 'ok', 'the worker says no');
ended_well('the worker says no', $dbh, $gtid, $name, 'aborted', told => qr/^prepare, abort$/);
is(one($dbh, 'SELECT reason FROM coord.twophase_transactions WHERE gtid = ?', $gtid), 'participant "card" said no: no money', 'and it is said who');

$dbh->do(q{INSERT INTO hindrance VALUES ('bank', 'prepare')});
($gtid, $name) = begin_all($dbh);
is(commit_all($gtid), 'ok', 'the function says no');
ended_well('the function says no', $dbh, $gtid, $name, 'aborted', effects => '');
$dbh->do('TRUNCATE hindrance');

# A duplicate key there.
($gtid, $name) = begin_all($dbh, mark => 'application 1');
is(commit_all($gtid), 'ok', 'the server says no');
ended_well('the server says no', $dbh, $gtid, $name, 'aborted', told => qr/^prepare, abort$/);
like(one($dbh, 'SELECT reason FROM coord.twophase_transactions WHERE gtid = ?', $gtid), qr/duplicate key/, 'and it is said why');

### The session that coordinates dies at each point
#
# Before the decision it stays undecided, whoever has said yes; another session goes on
# with it, or it is aborted.  After it everybody is told without anybody's help.

my @points = ([ asked => 0 ], [ voted => 0 ], [ prepared => 0 ], [ deciding => 0 ], [ decided => 1 ]);

foreach my $kind (qw(kill terminate))
{
  foreach (@points)
  {
    my ($point, $decided) = @$_;
    my $goes_on = $decided || $kind eq 'kill';
    my $test = "$kind at $point";
    my $gate = gate_at($main, "twophase_app_$point");
    my $client = reconnect($main);
    ($gtid, $name) = begin_all($client);
    $client->do("SET coord.debug_point = 'wait:twophase_app_$point'");
    send_async($client, "CALL coord.twophase_commit($gtid)");
    my $end = time + 60;
    my $pid = 0;
    until ($pid || time > $end)
    {
      pump($dbh) unless $point eq 'asked';
      $pid = one($dbh, q{SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = ?
        AND objid = hashtext(?)::bigint & 4294967295 AND NOT granted}, DEBUG_CLASS, "twophase_app_$point") // 0;
      sleep 0.01;
    }
    is($pid, $client->{pg_pid}, "$test: it was there");
    if ($kind eq 'kill')
    {
      kill 'KILL', $pid;
    }
    else
    {
      one($dbh, 'SELECT pg_terminate_backend(?)', $pid);
    }
    open_gate($gate);
    is(answer_of($client), 'lost', "$test: the client's connection is lost");
    eval { $client->disconnect };
    eval { $dbh->disconnect } if $kind eq 'kill';
    $dbh = reconnect($main);
    if ($decided)
    {
      is(one($dbh, 'SELECT coord.twophase_outcome(?)', $gtid), 'committed', "$test: it is decided");
    }
    else
    {
      is(one($dbh, 'SELECT coord.twophase_outcome(?)', $gtid), 'pending', "$test: nobody decides alone");
      is(commit_all($gtid), 'ok', "$test: another session goes on") if $goes_on;
      is(one($dbh, 'SELECT coord.twophase_abort(?)', $gtid), 'aborted', "$test: somebody aborts it") unless $goes_on;
    }
    ended_well($test, $dbh, $gtid, $name, $goes_on ? 'committed' : 'aborted',
      $point eq 'asked' && !$goes_on ? (effects => effects($dbh, $gtid) eq '' ? '' : 'prepare, abort') : ());
  }
}

### Nobody comes back: its time is up

# Begun and left; and asked, and left by a session that dies.
($gtid, $name) = begin_all($dbh, timeout => '5 s');
eventually('who was begun and left is aborted', $dbh, 'aborted', 'SELECT coord.twophase_outcome(?)', $gtid);
is(told($gtid), '', 'and nobody hears of it');

# The server crashed meanwhile.
my $client = reconnect($main);
($gtid, $name) = begin_all($client, timeout => '15 s');
my $gate = gate_at($main, 'twophase_app_asked');
$client->do(q{SET coord.debug_point = 'wait:twophase_app_asked'});
send_async($client, "CALL coord.twophase_commit($gtid)");
my $pid = wait_at_gate($gate, 'twophase_app_asked');
is($pid, $client->{pg_pid}, 'a session is about to ask');
kill 'KILL', $pid;
open_gate($gate);
is(answer_of($client), 'lost', 'and is killed');
eval { $client->disconnect };
eval { $dbh->disconnect };
$dbh = reconnect($main);
my $end = time + 60;
until (one($dbh, 'SELECT coord.twophase_outcome(?)', $gtid) eq 'aborted' || time > $end)
{
  pump($dbh);
  sleep 0.05;
}
ended_well('killed, and its time is up', $dbh, $gtid, $name, 'aborted', effects => effects($dbh, $gtid) eq '' ? '' : 'prepare, abort');

### A function that does not come back

$gtid = one($dbh, q{SELECT coord.twophase_begin('slow', '8 s')});
$dbh->do(q{SELECT coord.twophase_enlist(?, 'bank', 'prepare', 'confirm', 'cancel')}, undef, $gtid);
$dbh->do(q{SELECT coord.twophase_enlist(?, 'slow', 'slow', 'confirm', 'cancel')}, undef, $gtid);
is(commit_all($gtid), 'ok', 'a function that never votes: the call comes back');
is(one($dbh, 'SELECT coord.twophase_outcome(?)', $gtid), 'aborted', 'and it is aborted');
eventually('nobody runs it any more', $dbh, 0, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
eventually('and who said yes is told', $dbh, 'prepare, abort', q{SELECT coalesce(string_agg(phase, ', ' ORDER BY phase DESC), '') FROM effect WHERE gtid = ?}, $gtid);

### The worker outside dies between its effect and its vote: the vote is asked for again

($gtid, $name) = begin_all($dbh);
$client = reconnect($main);
send_async($client, "CALL coord.twophase_commit($gtid)");
my $outside = outside(sub {
  my ($say) = @_;
  my $session = session($main, 'postgres');
  my $task = claim_one($session, 'cards', lease => '1 s');
  $say->("$task->{phase} $task->{idempotency_key}");
  sleep 3600;
});
is(heard($outside), "prepare $gtid/card/prepare", 'a worker has the task, and has had its effect');
kill_outside($outside);
my $again = claim_one($dbh, 'cards', timeout => '5 s');
is("$again->{phase} $again->{idempotency_key} $again->{attempt}", "prepare $gtid/card/prepare 2", 'it died: another one is asked, with the same key');
push @{ $told{$gtid} }, 'prepare';
complete($dbh, $again);
$end = time + 60;
until ($client->pg_ready || time > $end)
{
  pump($dbh);
  sleep 0.01;
}
is(answer_of($client), 'ok', 'the call comes back');
$client->disconnect;
ended_well('a worker died', $dbh, $gtid, $name, 'committed', told => qr/^prepare, commit$/);

### A participant that is down says no

$participant->stop;
($gtid, $name) = begin_all($dbh);
is(commit_all($gtid), 'ok', 'a server is down');
is(one($dbh, 'SELECT coord.twophase_outcome(?)', $gtid), 'aborted', 'and it is aborted');
$participant->start;
ended_well('a server was down', $dbh, $gtid, $name, 'aborted', told => qr/^prepare, abort$/);

### Without preload: what needs no server can be done by sessions alone

$main->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$dbh->disconnect;
$main->restart;
$dbh = reconnect($main);
$gtid = one($dbh, 'SELECT coord.twophase_begin()');
$dbh->do(q{SELECT coord.twophase_enlist(?, 'bank', 'prepare', 'confirm', 'cancel')}, undef, $gtid);
is(one($dbh, 'CALL coord.twophase_commit(?::bigint)', $gtid), 'committed', 'without preload: functions, by the session itself');
is(effects($dbh, $gtid), 'prepare, commit', 'what they did');

$dbh->disconnect;
done_testing();
