# Two-phase commit where servers have standbys, copies and backups: who fails over may
# have lost what others have done, and who is a copy must not decide for the original.
# F13, F17 to F23 are the rows of the table of crashes in doc/twophase.md.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTwophase;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my @participants = map { new_participant($_, allows_streaming => 1) } qw(p1 p2);
my ($p1, $p2) = @participants;
my $archiving = PostgreSQL::Test::Cluster->new('main');
$archiving->init(allows_streaming => 1, has_archiving => 1);
configure($archiving, shared_preload_libraries => 'coord', restart_after_crash => 'on');
$archiving->start;
add_accounts($archiving);
$archiving->safe_psql('postgres', 'CREATE EXTENSION postgres_fdw; CREATE EXTENSION coord');
add_server($archiving, $_->name, $_) foreach @participants;

# Who coordinates now.
my $main = $archiving;
my $number = 0;

sub at
{
  my ($node, @sql) = @_;
  my $dbh = reconnect($node);
  $dbh->do($_) foreach @sql;
  $dbh->disconnect;
  return;
}

sub value
{
  my ($node, @query) = @_;
  my $dbh = reconnect($node);
  my $value = one($dbh, @query);
  $dbh->disconnect;
  return $value;
}

sub synchronous
{
  my ($node, $names) = @_;
  at($node, "ALTER SYSTEM SET synchronous_standby_names = '$names'", 'SELECT pg_reload_conf()');
  my $dbh = reconnect($node);
  is(wait_until($dbh, $names, 'SHOW synchronous_standby_names'), $names, $node->name . " waits for '$names'");
  $dbh->disconnect;
  return;
}

# A standby of a cluster, running, with everything that the cluster has.
sub standby_of
{
  my ($node, $name) = @_;
  $node->backup("for $name") if !-d $node->backup_dir . "/for $name";
  my $standby = PostgreSQL::Test::Cluster->new($name);
  $standby->init_from_backup($node, "for $name", has_streaming => 1);
  configure($standby, 'cluster_name' => $name, restart_after_crash => 'on');
  $standby->start;
  $node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
  return $standby;
}

# A transfer under way to a point, '' for none: the session, its name and the gate.
sub transfer_at
{
  my ($point, %settings) = @_;
  my $client = reconnect($main);
  my $name = 'transfer ' . ++$number;
  $client->do("SET $_ = '$settings{$_}'") foreach sort keys %settings;
  my $gate;
  if ($point)
  {
    $client->do("SET coord.debug_point = 'wait:twophase_$point'");
    $gate = gate_at($main, "twophase_$point");
  }
  $client->do('BEGIN');
  $client->do('INSERT INTO mark VALUES (?)', undef, $name);
  one($client, q{SELECT coord.remote_exec(?, 'INSERT INTO mark VALUES ($1)', jsonb_build_array(?::text))}, $_->name, $name)
    foreach @participants;
  send_async($client, 'COMMIT');
  ok(wait_at_gate($gate, "twophase_$point"), "$name is at $point") if $point;
  return ($client, $name, $gate);
}

sub wait_for
{
  my ($node, $expected, $what, $query, @values) = @_;
  my $dbh = reconnect($node);
  is(wait_until($dbh, $expected, $query, @values), $expected, $what);
  $dbh->disconnect;
  return;
}

sub ended
{
  my ($what, $name, $expected, @nodes) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  @nodes = ($main, @participants) if !@nodes;
  is(settled(@nodes), '', "$what: nothing is left");
  is(marks($name, @nodes), $expected, "$what: where it happened");
  return;
}

sub everywhere
{
  return join ' ', map { $_->name } $main, @participants;
}

# The first use of the participants.
{
  my ($client, $name) = transfer_at('');
  is(answer_of($client), 'ok', 'a transfer');
  $client->disconnect;
  ended('a transfer', $name, everywhere());
}

# A copy that is started while the original lives: it has the coordinator's tables as
# they were, and another incarnation.
sub clone_of
{
  my ($name) = @_;
  $main->backup($name);
  my $clone = PostgreSQL::Test::Cluster->new($name);
  $clone->init_from_backup($main, $name);
  configure($clone, restart_after_crash => 'on');
  return $clone;
}
{
  my $clone = clone_of('clone');
  my ($client, $name, $gate) = transfer_at('committed');
  $clone->start;
  my $incarnation = value($p1, q{SELECT split_part(min(gid), ':', 4) FROM pg_prepared_xacts});
  wait_for($clone, 2, 'F22: the clone has looked, and what the original prepared is in doubt to it',
    q{SELECT count(*) FROM coord.twophase_in_doubt WHERE reason ~ 'incarnation' AND repair ~ ?}, "twophase_adopt\\($incarnation,");
  is(value($clone, q{SELECT count(*) FROM coord.twophase_resolve() WHERE action ~ 'commit|roll'}), 0, 'F22: it does nothing to it when asked to');
  is(our_gids($_), 1, 'F22: ' . $_->name . ' still has it') foreach @participants;
  is(value($clone, q{SELECT count(*) FROM coord.stuck WHERE kind = 'in_doubt' AND repair ~ 'twophase_adopt'}), 2, 'F22: coord.stuck of the clone says so');
  open_gate($gate);
  is(answer_of($client), 'ok', 'F22: the original goes on');
  ended('F22: a clone beside the original', $name, everywhere());
  wait_for($clone, 0, 'F22: the clone sees that it is over', q{SELECT count(*) FROM coord.twophase_resolve() r, coord.twophase_in_doubt});
  $client->disconnect;
  $clone->stop('immediate');
}

# F13: the wait for the synchronous standby is cancelled: nobody is told, not even by the
# resolver, before the standby has the decision.
my $standby = standby_of($main, 'standby1');
synchronous($main, 'standby1');
{
  my ($client, $name) = transfer_at('');
  is(answer_of($client), 'ok', 'a transfer with a synchronous standby');
  ended('a transfer with a synchronous standby', $name, everywhere());
  $client->disconnect;

  $standby->stop;
  ($client, $name) = transfer_at('');
  my $watch = reconnect($main);
  is(wait_until($watch, 1, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid = ?}, $client->{pg_pid}), 1,
    'F13: COMMIT waits for the standby');
  is(our_gids($_), 1, 'F13: ' . $_->name . ' is not told while it waits') foreach @participants;
  one($watch, 'SELECT pg_cancel_backend(?)', $client->{pg_pid});
  is(answer_of($client), 'ok', 'F13: cancelled, the client sees COMMIT');
  is(one($watch, 'SELECT count(*) FROM coord.twophase_pending'), 1, 'F13: it is pending');
  my $looked = one($watch, 'SELECT clock_timestamp()');
  $watch->do('SET statement_timeout = 2000');
  eval { one($watch, 'SELECT count(*) FROM coord.twophase_resolve()') };
  is(our_gids($_), 1, 'F13: ' . $_->name . ' is not told by who resolves either') foreach @participants;
  is(marks($name, $main, @participants), 'main', 'F13: it has happened here only');
  $standby->start;
  ended('F13: the standby is back', $name, everywhere());
  $client->disconnect;
  $watch->disconnect;
}

# F20: the decision was replicated: the new primary commits.
{
  my ($client, $name, $gate) = transfer_at('committed');
  $main->stop('immediate');
  answer_of($client);
  $standby->promote;
  $main = $standby;
  ended('F20: the coordinator fails over, and has the decision', $name, everywhere());
  is(value($main, q{SELECT count(*) FROM coord.twophase_history WHERE event = 'committed' AND cardinality(servers) = 2}) > 0, 1, 'F20: and shows it');
}

# A coordinator that fails over to a standby that was behind.
sub fail_over_behind
{
  my ($name, $begin) = @_;
  my $behind = standby_of($main, $name);
  $behind->stop;
  my @transfer = $begin->();
  $main->stop('immediate');
  answer_of($transfer[0]);
  $main = $behind;
  configure($main, primary_conninfo => '');
  $main->start;
  $main->promote;
  return @transfer;
}

# F13, F21: nobody was told: adopted, all roll back.
{
  my (undef, $name) = fail_over_behind('standby2', sub { return transfer_at('committed') });
  wait_for($main, 2, 'F21: what the lost decision was of is in doubt', 'SELECT count(*) FROM coord.twophase_in_doubt');
  is(our_gids($_), 1, 'F21: ' . $_->name . ' still has it') foreach @participants;
  my $repair = value($main, 'SELECT DISTINCT repair FROM coord.twophase_in_doubt');
  like($repair, qr/^SELECT coord\.twophase_adopt\(\d+, 'why'\);$/, 'F21: the repair');
  is(value($main, $repair), 2, 'F21: adopted');
  ended('F21: nobody had been told', $name, '');
}

# F21: one has committed already: adopted, the other does, too.
{
  my (undef, $name) = fail_over_behind('standby3', sub {
    my @transfer = transfer_at('committed');
    $p2->stop('immediate');
    open_gate($transfer[2]);
    is(answer_of($transfer[0]), 'ok', 'F21: COMMIT, one participant is down');
    is(our_gids($p1), 0, 'F21: the other has committed');
    return @transfer;
  });
  restart_dead($p2);
  wait_for($main, 1, 'F21: the one that was down is in doubt', q{SELECT count(*) FROM coord.twophase_in_doubt WHERE server_name = 'p2'});
  is(value($main, value($main, 'SELECT repair FROM coord.twophase_in_doubt')) > 0, 1, 'F21: adopted');
  is(settled($main, @participants), '', 'F21: one had committed: nothing is left');
  is(marks($name, @participants), 'p1 p2', 'F21: one had committed: the other does, too');
}

# F23: recovery to an earlier time.  The first coordinator is the original here.
{
  $main->stop;
  $main = $archiving;
  $main->start;
  synchronous($main, '');
  my $dbh = reconnect($main);
  $main->backup('earlier');
  one($dbh, q{SELECT coord.create_restore_point('before')});
  my $segment = one($dbh, 'SELECT pg_walfile_name(pg_current_wal_lsn())');
  $dbh->do('SELECT pg_switch_wal()');
  is(wait_until($dbh, 1, q{SELECT count(*) FROM pg_stat_archiver WHERE last_archived_wal >= ?}, $segment), 1, 'F23: the restore point is archived');
  $dbh->disconnect;
  my ($client, $name, $gate) = transfer_at('committed');
  $main->stop('immediate');
  answer_of($client);
  my $restored = PostgreSQL::Test::Cluster->new('restored');
  $restored->init_from_backup($main, 'earlier', has_restoring => 1);
  configure($restored, recovery_target_name => 'before', recovery_target_timeline => 'current', recovery_target_action => 'promote', restart_after_crash => 'on',
    archive_mode => 'off', hot_standby => 'off');
  $main = $restored;
  $main->start;
  wait_for($main, 2, 'F23: what came after is in doubt', 'SELECT count(*) FROM coord.twophase_in_doubt');
  is(value($main, value($main, 'SELECT DISTINCT repair FROM coord.twophase_in_doubt')), 2, 'F23: adopted');
  ended('F23: recovery to an earlier time', $name, '');
}

# F17: the participant's own wait is cancelled in phase two: it has committed, and is
# not taken for told before the resolver has seen that the name is gone.
{
  my ($client, $name, $gate) = transfer_at('committed', 'coord.twophase_phase2_timeout' => '60s');
  is(want_standby($p1, 'nobody'), 1, 'F17: a synchronous standby is wanted');
  my $watch = reconnect($p1);
  open_gate($gate);
  is(wait_until($watch, 1, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'}), 1, 'F17: COMMIT PREPARED waits over there');
  one($watch, q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'});
  is(answer_of($client), 'ok', 'F17: the client sees COMMIT');
  synchronous($p1, '');
  ended('F17: a wait of a participant is cancelled in phase two', $name, everywhere());
  $_->disconnect foreach $watch, $client;
}

# F18: the participant fails over to one that has PREPARE and not what came after.
{
  my $behind = standby_of($p1, 'p1_behind');
  my ($client, $name, $gate) = transfer_at('committed');
  $p1->wait_for_catchup($behind, 'replay', $p1->lsn('insert'));
  $behind->stop;
  open_gate($gate);
  is(answer_of($client), 'ok', 'F18: COMMIT');
  ended('F18: before the failover', $name, everywhere());
  $client->disconnect;
  $p1->stop('immediate');
  configure($behind, primary_conninfo => '');
  $behind->start;
  $behind->promote;
  is(our_gids($behind), 1, 'F18: it is prepared again');
  at($main, sprintf q{ALTER SERVER p1 OPTIONS (SET host '%s', SET port '%s')}, $behind->host, $behind->port);
  like(value($main, q{SELECT string_agg(action, ',') FROM coord.twophase_resolve('p1')}), qr/commit/, 'F18: who looks commits it again');
  is(our_gids($behind), 0, 'F18: it is not prepared any more');
  is(marks($name, $behind), 'p1_behind', 'F18: it has happened there');
  is(value($main, q{SELECT count(*) FROM coord.twophase_history WHERE event ~ 'resurrected'}), 1, 'F18: and the history says so');

  # F19: to one that had not even that: nothing that coord could see.
  is(settled($main, $behind, $p2), '', 'F18: nothing is left');
  $behind->stop;
}

unlike(slurp_file($_->logfile), qr/PANIC|TRAP:/, 'nothing worse than that in the log of ' . $_->name) foreach $main, $archiving, $standby;
$_->stop foreach $main, $p2;
done_testing();
