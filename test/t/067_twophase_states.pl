# Two-phase commit when the coordinator may not act, or a participant is not what it was:
# standby, copy, pause, no launcher; a changed mapping, two who resolve, a restored
# participant, a clock that jumps, a network that swallows.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTwophase;
use DelayProxy;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $p1 = new_participant('p1', allows_streaming => 1);
my $p2 = new_participant('p2', allows_streaming => 1);
my $main = new_coordinator('main', [ $p1, $p2 ], allows_streaming => 1);
my @nodes = ($main, $p1, $p2);
my $mark = 'INSERT INTO mark VALUES ($1)';
my $exec = q{SELECT coord.remote_exec('p1', 'SELECT 1')};
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

sub refused
{
  my ($node, $pattern, $what, $database) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  my $dbh = reconnect($node, $database);
  like(error_of($dbh, $exec), $pattern, $what);
  $dbh->disconnect;
  return;
}

# A transfer over both, by COMMIT: its name, and what the client saw.
sub transfer
{
  my ($client, @servers) = @_;
  @servers = qw(p1 p2) if !@servers;
  my $name = 'transfer ' . ++$number;
  $client->do('BEGIN');
  $client->do('INSERT INTO mark VALUES (?)', undef, $name);
  one($client, 'SELECT coord.remote_exec(?, ?, jsonb_build_array(?::text))', $_, $mark, $name) foreach @servers;
  my $answer = error_of($client, 'COMMIT');
  return ($name, $answer);
}

# One whose COMMIT waits at a debug point: its name, its session, and who holds the gate.
sub transfer_at
{
  my ($node, $point) = @_;
  my $client = reconnect($node);
  my $name = 'transfer ' . ++$number;
  my $gate = gate_at($node, $point);
  $client->do(qq{SET coord.debug_point = 'wait:$point'});
  $client->do('BEGIN');
  $client->do('INSERT INTO mark VALUES (?)', undef, $name);
  one($client, 'SELECT coord.remote_exec(?, ?, jsonb_build_array(?::text))', $_, $mark, $name) foreach qw(p1 p2);
  send_async($client, 'COMMIT');
  ok(wait_at_gate($gate, $point), "$name is at $point");
  return ($name, $client, $gate);
}

# One that has been decided, and then its session is killed, the server restarts, and
# what happens in between is the caller's.
sub leave_decided
{
  my ($between) = @_;
  my ($name, $client, $gate) = transfer_at($main, 'twophase_committed');
  $main->stop('immediate');
  answer_of($client);
  open_gate($gate);
  $between->() if $between;
  restart_dead($main);
  return $name;
}

{
  my $client = reconnect($main);
  my ($name, $answer) = transfer($client);
  is($answer, 'no error', 'a transfer');
  is(settled(@nodes), '', 'nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'where it happened');

  # A parallel query; its workers cannot have participants.  Beside it they do no harm.
  my $parallel = one($client, q{SELECT count(*) FROM pg_settings WHERE name = 'debug_parallel_query'}) ? 'debug_parallel_query' : 'force_parallel_mode';
  $client->do(q{CREATE FUNCTION smuggled() RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE AS $$
    BEGIN RETURN coord.remote_exec('p1', 'SELECT 1'); END $$});
  $client->do("SET $parallel = on");
  like(error_of($client, 'SELECT smuggled()'), qr/^25000 participants cannot be used during a parallel operation/, 'not in a parallel worker');
  is(one($client, q{SELECT count(*) FROM pg_proc WHERE pronamespace = 'coord'::regnamespace
      AND proname ~ '^(remote_|twophase_(current|run|resolve|force|adopt|begin|enlist|commit|abort))' AND proparallel <> 'u'}), 0,
    'functions of participants are not parallel safe');
  $client->do('BEGIN');
  $client->do(q{INSERT INTO mark VALUES ('beside')});
  one($client, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, '["beside"]') foreach qw(p1 p2);
  is(one($client, 'SELECT count(*) FROM acc'), 10, 'a parallel query in a transaction with participants');
  $client->do('COMMIT');
  is(settled(@nodes), '', 'nothing is left');
  is(marks('beside', @nodes), 'main p1 p2', 'it commits at all');
  $client->disconnect;
}

### A standby

{
  $main->backup('standby');
  my $standby = PostgreSQL::Test::Cluster->new('standby');
  $standby->init_from_backup($main, 'standby', has_streaming => 1);
  $standby->start;
  my $dbh = reconnect($standby);
  like(error_of($dbh, $_), qr/^25006 /, "$_ on a standby")
    foreach $exec, q{SELECT coord.twophase_current()}, q{SELECT count(*) FROM coord.twophase_resolve()}, q{SELECT coord.twophase_begin()},
    q{CALL coord.twophase_run(ARRAY[coord.branch('p1', 'SELECT 1')])}, q{SELECT coord.twophase_adopt(1, 'why')};
  is(one($dbh, 'SELECT count(*) FROM coord.twophase_history WHERE event = ?', 'committed') > 0, 1, 'the history can be read there');
  is(one($dbh, "SELECT count(*) FROM coord.twophase_$_"), 0, "coord.twophase_$_ too") foreach qw(active in_doubt);
  $dbh->disconnect;
  $standby->stop('immediate');
}

### Paused, and off

{
  add_server($main, 'unused', $p1);
  at($main, q{SELECT coord.pause('maintenance')});
  my $client = reconnect($main);
  my ($name, $answer) = transfer($client);
  is($answer, 'no error', 'paused: transactions go on');
  is(marks($name, @nodes), 'main p1 p2', 'and commit at all');
  $client->disconnect;
  $name = leave_decided();
  my $dbh = reconnect($main);
  is(wait_until($dbh, 0, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord resolver'}), 0, 'paused: no resolver stays');
  is(our_gids($_), 1, 'paused: nothing is resolved at ' . $_->name) foreach $p1, $p2;
  one($dbh, 'SELECT coord.resume()');
  $dbh->disconnect;
  is(settled(@nodes), '', 'resumed: nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'it is committed at all');

  # Off from now on: who is known goes on, whoever comes first is refused.
  my $off = sub { append_to_file($main->data_dir . '/postgresql.conf', 'coord.enabled = ' . shift() . "\n") };
  $dbh = reconnect($main);
  ($name, $client, my $gate) = transfer_at($main, 'twophase_committed');
  $off->('off');
  $main->reload;
  is(wait_until($dbh, 'off', 'SHOW coord.enabled'), 'off', 'off');
  is(wait_until($dbh, 0, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord resolver'}), 0, 'off: the resolver goes home');
  $p2->stop('immediate');
  open_gate($gate);
  is(answer_of($client), 'ok', 'off: COMMIT, while a participant is down in phase two');
  restart_dead($p2);
  is(our_gids($p2), 1, 'off: what is left over stays');
  is(one($dbh, q{SELECT count(*) FROM coord.twophase_pending}), 1, 'off: and is pending');
  my $unused = q{SELECT coord.remote_exec('unused', 'SELECT 1')};
  like(error_of($dbh, $unused), qr/^55000 .*HINT:.*coord\.enabled/s, 'off: a first use is refused');
  $client->do('RESET coord.debug_point');
  (my $other, $answer) = transfer($client);
  is($answer, 'no error', 'off: transactions over known participants go on');
  is(marks($other, @nodes), 'main p1 p2', 'and commit at all');
  $off->('on');
  $main->reload;
  is(settled(@nodes), '', 'on again: nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'it is committed at all');
  is(one($dbh, $unused), 1, 'on again: a first use is not refused');
  $dbh->do('DROP SERVER unused CASCADE');       # as p1 it leads to where others look, too
  $_->disconnect foreach $client, $dbh;

  # Off at the start.
  $name = leave_decided(sub { $off->('off') });
  refused($main, qr/^55000 .*HINT:.*coord\.enabled/s, 'off: participants are refused after a start');
  is(our_gids($_), 1, 'off: nothing is resolved at ' . $_->name) foreach $p1, $p2;
  $off->('on');
  $main->reload;
  is(settled(@nodes), '', 'on again: nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'it is committed at all');
}

### Copies: of a template, and of a dump

{
  at($main, 'CREATE DATABASE copy_template TEMPLATE postgres', 'CREATE DATABASE copy_dump');
  my $file = PostgreSQL::Test::Utils::tempdir . '/dump.sql';
  my ($name, $client, $gate) = transfer_at($main, 'twophase_prepared');
  system_or_bail('pg_dump', '--file' => $file, '--dbname' => $main->connstr('postgres'));
  system_or_bail('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-o', "$file.out", '-f' => $file, '-d' => $main->connstr('copy_dump'));
  foreach my $copy (qw(copy_template copy_dump))
  {
    my $dbh = reconnect($main, $copy);
    like(error_of($dbh, $_), qr/^55000 this database is a copy.*coord\.resume\(\)/s, "$copy: refused: $_")
      foreach $exec, q{SELECT count(*) FROM coord.twophase_resolve()}, q{SELECT coord.twophase_current()},
      q{CALL coord.twophase_run(ARRAY[coord.branch('p1', 'SELECT 1')])};
    one($dbh, 'SELECT coord.resume()');
    is(one($dbh, $exec), 1, "$copy: resumed it has participants");
    is(one($dbh, q{SELECT count(*) FROM coord.twophase_resolve() WHERE gid IS NOT NULL}), 0, "$copy: what the original has prepared is not looked at");
    is(one($dbh, 'SELECT count(*) FROM coord.twophase_in_doubt'), 0, "$copy: and not in doubt");
    is(one($dbh, q{SELECT count(*) > 0 FROM coord.twophase_history WHERE event = 'committed'}), 1, "$copy: decisions of the original can be read");
    is(our_gids($_), 1, "$copy: the original's is still prepared at " . $_->name) foreach $p1, $p2;
    $dbh->do('BEGIN');
    $dbh->do('INSERT INTO mark VALUES (?)', undef, "of $copy");
    one($dbh, 'SELECT coord.remote_exec(?, ?, jsonb_build_array(?::text))', $_, $mark, "of $copy") foreach qw(p1 p2);
    $dbh->do('COMMIT');
    is(marks("of $copy", @nodes), 'p1 p2', "$copy: a transaction commits at the participants");
    is(one($dbh, 'SELECT count(*) FROM mark WHERE name = ?', "of $copy"), 1, "$copy: and there");
    is(wait_until($dbh, 0, 'SELECT count(*) FROM coord.twophase_pending'), 0, "$copy: nothing is pending");
    $dbh->disconnect;
  }
  open_gate($gate);
  is(answer_of($client), 'ok', 'the original commits');
  is(settled(@nodes), '', 'nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'it is committed at all');
  $client->disconnect;
  at($main, map { "DROP DATABASE $_" } qw(copy_template copy_dump));
}

### A mapping that changes, DROP

{
  # A role whose password counts, at p1; it may finish what it has prepared.
  $p1->safe_psql('postgres', q{SET password_encryption = 'scram-sha-256'; CREATE ROLE changed LOGIN PASSWORD 'right';
    GRANT ALL ON mark TO changed});
  my $hba = $p1->data_dir . '/pg_hba.conf';
  my $rules = slurp_file($hba);
  unlink $hba;
  append_to_file($hba, "local all changed scram-sha-256\nhost all changed all scram-sha-256\n$rules");
  $p1->reload;

  my ($mapping, $client, $gate) = transfer_at($main, 'twophase_committed');
  my $dbh = reconnect($main);
  $dbh->do(q{SET lock_timeout = '300ms'});
  like(error_of($dbh, 'DROP SERVER p1 CASCADE'), qr/^(2BP01|55P03) /, 'F25: its server is not dropped');
  like(error_of($dbh, 'DROP USER MAPPING FOR CURRENT_USER SERVER p2'), qr/^(2BP01|55P03) /, 'F25: nor its mapping');
  like(error_of($dbh, 'DROP EXTENSION coord'), qr/^2BP01 .*not finished/s, 'F25: nor the extension');
  $dbh->disconnect;
  $main->stop('immediate');
  answer_of($client);
  open_gate($gate);
  $p1->stop('immediate');
  restart_dead($main);
  $dbh = reconnect($main);
  # As a role that p1 does not know: the look fails, and says why.
  $dbh->do(q{ALTER USER MAPPING FOR CURRENT_USER SERVER p1 OPTIONS (ADD user 'nobody')});
  restart_dead($p1);
  is(wait_until($dbh, 1, q{SELECT count(*) FROM coord.twophase_servers WHERE server_name = 'p1' AND error ~ 'nobody'}), 1,
    'F25: coord.twophase_servers says what is wrong with a mapping');
  is(one($dbh, q{SELECT error ~ 'does not exist' FROM coord.twophase_check('p1') c(s, n, ok, error) WHERE NOT ok LIMIT 1}), 1, 'F25: so does twophase_check()');
  is(our_gids($p1), 1, 'F25: it is left there');
  $dbh->do(q{ALTER USER MAPPING FOR CURRENT_USER SERVER p1 OPTIONS (DROP user)});
  is(settled(@nodes), '', 'F25: mended, nothing is left');
  is(marks($mapping, @nodes), 'main p1 p2', 'F25: it has happened everywhere');

  # The password changes while something is prepared.
  my $error = q{SELECT count(*) FROM coord.twophase_servers WHERE server_name = 'p1' AND failed_at IS NOT NULL AND error ~ ?};
  $dbh->do(q{ALTER USER MAPPING FOR CURRENT_USER SERVER p1 OPTIONS (ADD user 'changed', ADD password 'right')});
  $mapping = leave_decided(sub { $p1->safe_psql('postgres', q{ALTER ROLE changed PASSWORD 'new'}) });
  $dbh->disconnect;
  $dbh = reconnect($main);
  is(wait_until($dbh, 1, $error, 'password authentication failed'), 1, 'F25: a password that was changed is told');
  is(our_gids($p1), 1, 'F25: it is left there');
  is(one($dbh, q{SELECT count(*) FROM coord.twophase_pending}), 1, 'F25: and pending');
  my ($other, $answer) = ('', error_of($dbh, $exec));
  like($answer, qr/^ZC010 .*password authentication failed/s, 'F25: a transaction is told');
  $dbh->do(q{ALTER USER MAPPING FOR CURRENT_USER SERVER p1 OPTIONS (SET password 'new')});
  one($dbh, q{SELECT count(*) FROM coord.twophase_resolve('p1')});
  is(settled(@nodes), '', 'F25: the mapping has the new one, nothing is left');
  is(marks($mapping, @nodes), 'main p1 p2', 'F25: it has happened everywhere');
  ($other, $answer) = transfer($dbh);
  is($answer, 'no error', 'F25: transactions go on with it');
  is(marks($other, @nodes), 'main p1 p2', 'F25: at all');

  # The user changes: what the old one has prepared is not this one's to finish.
  $dbh->do(q{ALTER USER MAPPING FOR CURRENT_USER SERVER p1 OPTIONS (DROP user, DROP password)});
  ($mapping, $client, $gate) = transfer_at($main, 'twophase_committed');
  $dbh->do(q{ALTER USER MAPPING FOR CURRENT_USER SERVER p1 OPTIONS (ADD user 'changed', ADD password 'new')});
  $main->stop('immediate');
  answer_of($client);
  open_gate($gate);
  restart_dead($main);
  $dbh = reconnect($main);
  is(wait_until($dbh, 1, q{SELECT count(*) FROM coord.twophase_in_doubt WHERE server_name = 'p1' AND reason ~ 'as which no user mapping connects any more'}), 1,
    'F25: what was prepared by the mapping\'s former user is in doubt');
  is(our_gids($p1), 1, 'F25: it is left there');
  is(our_gids($p2), 0, 'F25: and finished elsewhere');
  $dbh->do(q{ALTER USER MAPPING FOR CURRENT_USER SERVER p1 OPTIONS (DROP user, DROP password)});
  one($dbh, q{SELECT count(*) FROM coord.twophase_resolve('p1')});
  is(settled(@nodes), '', 'F25: the mapping has the former user again, nothing is left');
  is(marks($mapping, @nodes), 'main p1 p2', 'F25: it has happened everywhere');
  $dbh->disconnect;
}

### Two who look at the same time

{
  my $control = reconnect($main);
  one($control, q{SELECT coord.pause('two resolvers')});
  my $name = leave_decided();
  $control = reconnect($main);
  is(our_gids($_), 1, 'F27: a transfer is left at ' . $_->name) foreach $p1, $p2;
  my $gate = gate_at($main, 'resolver_before_action');
  my @sessions = map { reconnect($main) } 1 .. 3;
  $_->do(q{SET coord.debug_point = ''}) foreach @sessions;
  append_to_file($main->data_dir . '/postgresql.conf', "coord.debug_point = 'wait:resolver_before_action'\n");
  $main->reload;
  is(wait_until($control, 'wait:resolver_before_action', 'SHOW coord.debug_point'), 'wait:resolver_before_action', 'F27: the setting');
  one($control, 'SELECT coord.resume()');
  my $resolver = wait_at_gate($gate, 'resolver_before_action');
  is(one($control, 'SELECT backend_type FROM pg_stat_activity WHERE pid = ?', $resolver), 'coord resolver', 'F27: the resolver is about to finish it');

  # Others wait for their turn, and find nothing to do.
  send_async($_, 'CREATE TEMP TABLE done AS SELECT * FROM coord.twophase_resolve() WHERE gid IS NOT NULL') foreach @sessions;
  is(wait_until($control, 3, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'CREATE TEMP TABLE done%'}), 3,
    'F27: coord.twophase_resolve() waits for its turn');

  # Another history's would be kept off by what this one holds there.
  my $there = reconnect($p1);
  my $fence = $there->selectrow_hashref(q{SELECT ((classid::bigint << 32) | objid::bigint)::text AS key, pid FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())});
  ok($fence && !one($there, 'SELECT pg_try_advisory_lock(?)', $fence->{key}), 'F27: it holds the fence at the participant');
  append_to_file($main->data_dir . '/postgresql.conf', "coord.debug_point = ''\n");
  $main->reload;
  open_gate($gate);
  foreach (@sessions)
  {
    is(answer_of($_), 'ok', 'F27: coord.twophase_resolve() beside the resolver');
    is(one($_, 'SELECT count(*) FROM done'), 0, 'F27: the resolver has done it');
    $_->disconnect;
  }
  is(settled(@nodes), '', 'F27: nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'F27: it has happened everywhere');

  # Somebody else has the fence: nothing is done there.
  one($control, q{SELECT coord.pause('the fence')});
  $name = leave_decided();
  one($there, 'SELECT pg_advisory_lock(?)', $fence->{key});
  $control = reconnect($main);
  is(one($control, q{SELECT detail FROM coord.twophase_resolve() WHERE server_name = 'p1' AND action = 'failed'}),
    'another resolver of this cluster is at work there: is a copy of this server running?', 'F27: who has not got the fence does nothing');
  is(our_gids($p1), 1, 'F27: it is left there');
  is(our_gids($p2), 0, 'F27: and finished elsewhere');
  $there->disconnect;
  one($control, 'SELECT coord.resume()');
  is(settled(@nodes), '', 'F27: nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'F27: it has happened everywhere');
  $control->disconnect;
}

### A participant that is restored from a backup with an old name in it; clocks that jump

# This coordinator gets a gettimeofday() that adds what a file says.
my $offset = PostgreSQL::Test::Utils::tempdir . '/offset';

sub clock_library
{
  my $library = PostgreSQL::Test::Utils::tempdir . '/clock';
  append_to_file("$library.c", qq{
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>
int gettimeofday(struct timeval *tv, void *tz)
{
	static int (*real)(struct timeval *, void *);
	char text[32] = {0};
	int fd, result;

	if (real == NULL)
		real = (int (*)(struct timeval *, void *)) dlsym(RTLD_NEXT, "gettimeofday");
	result = real(tv, tz);
	fd = open("$offset", O_RDONLY);
	if (fd >= 0)
	{
		if (read(fd, text, sizeof(text) - 1) > 0)
			tv->tv_sec += atol(text);
		close(fd);
	}
	return result;
}
time_t time(time_t *result)
{
	struct timeval now;

	gettimeofday(&now, NULL);
	if (result)
		*result = now.tv_sec;
	return now.tv_sec;
}
});
  system_or_bail('cc', '-shared', '-fPIC', '-o', "$library.so", "$library.c", '-ldl');
  return "$library.so";
}

sub set_clock
{
  my ($hours) = @_;
  append_to_file("$offset.new", $hours * 3600);
  rename "$offset.new", $offset or die $!;
  return;
}

{
  my $library = clock_library();
  my $clocked;
  set_clock(0);
  {
    local $ENV{LD_PRELOAD} = $library;
    $clocked = new_coordinator('clocked', [ $p1, $p2 ]);
  }
  my @all = ($clocked, $p1, $p2);
  my $dbh = reconnect($clocked);
  my $last = 0;

  # A transfer over all, and that its id is above all before.
  my $goes_on = sub {
    my ($what) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $name = 'transfer ' . ++$number;
    $dbh->do('BEGIN');
    my $gtid = eval { one($dbh, 'SELECT coord.twophase_current()') } // 0;
    my $answer = 'no error';
    eval {
      $dbh->do('INSERT INTO mark VALUES (?)', undef, $name);
      one($dbh, 'SELECT coord.remote_exec(?, ?, jsonb_build_array(?::text))', $_, $mark, $name) foreach qw(p1 p2);
      1
    } or $answer = $dbh->errstr;
    $answer = error_of($dbh, 'COMMIT') if $answer eq 'no error';
    $dbh->do('ROLLBACK');
    is($answer, 'no error', "$what: transactions go on");
    cmp_ok($gtid, '>', $last, "$what: ids grow");
    is(settled(@all), '', "$what: nothing is left");
    is(marks($name, @all), $answer eq 'no error' ? 'clocked p1 p2' : '', "$what: all or none");
    is(one($dbh, 'SELECT coord.twophase_outcome(?)', $gtid), 'committed', "$what: twophase_outcome()");
    $last = $gtid if $gtid > $last;
  };
  my $restart = sub {
    my ($between) = @_;
    eval { $dbh->disconnect };
    $clocked->stop('immediate');
    $between->();
    local $ENV{LD_PRELOAD} = $library;
    restart_dead($clocked);
    $dbh = reconnect($clocked);
  };

  $goes_on->('before');
  my ($aged, $client, $gate) = transfer_at($clocked, 'twophase_committed');
  my $old = one($dbh, 'SELECT max(gtid) FROM coord.twophase_active');
  $p1->backup('with it');
  open_gate($gate);
  is(answer_of($client), 'ok', 'F24: a transaction was decided, is in a backup of a participant, and is committed');
  $client->disconnect;
  is(settled(@all), '', 'F24: nothing is left');
  is(one($dbh, 'SELECT coord.twophase_outcome(?)', $old), 'committed', 'F24: it is known');
  my $point_at = sub {
    my ($node) = @_;
    my ($host, $port) = ($node->host, $node->port);
    $dbh->do("ALTER SERVER p1 OPTIONS (SET host '$host', SET port '$port')");
  };
  my $restore = sub {
    my $node = PostgreSQL::Test::Cluster->new(shift);
    $node->init_from_backup($p1, 'with it');
    $node->start;
    is(our_gids($node), 1, 'F24: the name is prepared at the ' . $node->name);
    $point_at->($node);
    return $node;
  };
  my $restored = $restore->('restored');
  one($dbh, q{SELECT count(*) FROM coord.twophase_resolve('p1')});
  is(our_gids($restored), 0, 'F24: within the retention it is brought up to the decision');
  is(marks($aged, $restored), 'restored', 'F24: it has happened there');
  is(one($dbh, q{SELECT count(*) FROM coord.twophase_history WHERE event ~ '^resurrected' AND gtid = ?}, $old), 1, 'F24: the history tells of it');
  $point_at->($p1);
  $restored->stop('immediate');

  # The clock goes back, further than partitions of decisions reach, and comes back.
  set_clock(-30 * 24);
  $goes_on->('F29: a month back');
  set_clock(0);
  $goes_on->('F29: the clock is right again');
  (my $name, $client, $gate) = transfer_at($clocked, 'twophase_committed');
  $restart->(sub {
    answer_of($client);
    open_gate($gate);
    set_clock(-3);
  });
  like(error_of($dbh, $_), qr/^55000 .*HINT:.*coord\.fence_advance/s, "F29: three hours back, by a restart, refused: $_")
    foreach $exec, 'SELECT coord.twophase_current()';
  is(our_gids($_), 1, 'F29: what is left over is left at ' . $_->name) foreach $p1, $p2;
  $restart->(sub { set_clock(-0.5) });
  is(settled(@all), '', 'F29: half an hour back, by a restart: nothing is left');
  is(marks($name, @all), 'clocked p1 p2', 'F29: it has happened everywhere');
  $goes_on->('F29: half an hour back, by a restart');

  # Ahead, beyond the retention.
  $restart->(sub { set_clock(30 * 24) });
  $goes_on->('F29: a month ahead');
  is(wait_until($dbh, 0, 'SELECT count(*) FROM coord_internal.twophase_decision WHERE gtid = ?', $old), 0, 'F24: the decision is older than the retention');
  is(one($dbh, 'SELECT coord.twophase_outcome(?)', $old), 'unknown', 'F24: and not known any more');
  $restored = $restore->('old');
  is(one($dbh, q{SELECT action FROM coord.twophase_resolve('p1') WHERE coord_internal.gid_gtid(gid) = ?}, $old), 'in doubt', 'F24: nobody guesses');
  is(our_gids($restored), 1, 'F24: it is left there');
  my ($gid, $reason) = $dbh->selectrow_array(q{SELECT gid, reason FROM coord.twophase_in_doubt WHERE server_name = 'p1'});
  like($reason, qr/^older than coord\.twophase_retention/, 'F24: it is in doubt, and why');
  $dbh->do(q{SELECT coord.twophase_force(?, 'p1', 'committed', 'from a backup')}, undef, $gid);
  is(our_gids($restored), 0, 'F24: forced, it is gone');
  is(marks($aged, $restored), 'old', 'F24: it has happened there');
  is(one($dbh, 'SELECT count(*) FROM coord.twophase_in_doubt'), 0, 'F24: nothing is in doubt');
  $point_at->($p1);
  $restored->stop('immediate');
  $dbh->disconnect;
  unlike(slurp_file($clocked->logfile), qr/PANIC|TRAP:/, 'nothing worse than that in the log');
  $clocked->stop;
}

### A network that swallows, and that closes half

{
  my $proxy = DelayProxy->new($p1);
  add_server($main, 'far', $p1, host => $proxy->host, port => $proxy->port);
  my $client = reconnect($main);
  $client->do(q{SET coord.twophase_prepare_timeout = '700ms'; SET coord.twophase_phase2_timeout = '700ms'});
  my ($name, $answer) = transfer($client, 'far', 'p2');
  is($answer, 'no error', 'through the proxy');

  $proxy->tell('on reply hang/1 PREPARE TRANSACTION');
  my $seconds = seconds { ($name, $answer) = transfer($client, 'far', 'p2') };
  like($answer, qr/^ZC010 participant "far"/, 'the answer to PREPARE is swallowed: an error');
  cmp_ok($seconds, '>=', 0.7, 'it was waited for');
  cmp_ok($seconds, '<', 20, 'within the timeouts');
  is($proxy->fired, 1, 'it was lost');
  $proxy->tell('off');
  $proxy->tell('drop');
  is(settled(@nodes), '', 'nothing is left');
  is(marks($name, @nodes), '', 'none');

  $client->do('ROLLBACK');
  ($name, $answer) = transfer($client, 'far', 'p2');
  is($answer, 'no error', 'then it works again');
  $proxy->tell('on reply hang/1 COMMIT PREPARED');
  $seconds = seconds { ($name, $answer) = transfer($client, 'far', 'p2') };
  is($answer, 'no error', 'the answer to COMMIT PREPARED is swallowed: COMMIT');
  cmp_ok($seconds, '>=', 0.7, 'it was waited for');
  cmp_ok($seconds, '<', 20, 'within the timeouts');
  is($proxy->fired, 1, 'it was lost');
  $proxy->tell('off');
  is(settled(@nodes), '', 'nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'all');

  foreach my $side (qw(client server))
  {
    $client->do('BEGIN');
    $client->do('INSERT INTO mark VALUES (?)', undef, "half $side");
    one($client, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, qq{["half $side"]}) foreach qw(far p2);
    $proxy->tell("halfclose $side");
    $answer = error_of($client, 'COMMIT');
    like($answer, qr/^ZC010 participant "far"/, "closed towards the $side: an error");
    is(settled(@nodes), '', 'nothing is left');
    is(marks("half $side", @nodes), '', 'none');
  }
  $client->do('ROLLBACK');
  is((transfer($client, 'far', 'p2'))[1], 'no error', 'then it works again');

  # The connection ends instead of an answer, and for a time nobody can connect.
  foreach my $way (qw(drop down halfclose))
  {
    foreach my $case ([ 'PREPARE TRANSACTION', qr/^ZC010 participant "far"/, '' ], [ 'COMMIT PREPARED', qr/^no error$/, 'main p1 p2' ])
    {
      my ($tag, $expected, $where) = @$case;
      my $what = "$way instead of the answer to $tag";
      $proxy->tell("on reply $way/1 $tag");
      $seconds = seconds { ($name, $answer) = transfer($client, 'far', 'p2') };
      is($proxy->fired, 1, "$what: it was lost");
      like($answer, $expected, "$what: what the client sees");
      cmp_ok($seconds, '<', 20, "$what: within the timeouts");
      $client->do('ROLLBACK');
      $proxy->tell($_) foreach 'off', 'go';
      is(settled(@nodes), '', "$what: nothing is left");
      is(marks($name, @nodes), $where, "$what: all or none");
    }
  }
  is((transfer($client, 'far', 'p2'))[1], 'no error', 'then it works again');

  # All of its connections hang, for as long as it takes: nobody else waits for it.
  my $patient = reconnect($main);
  $patient->do(q{SET coord.twophase_prepare_timeout = '1h'});
  $proxy->tell('on reply hang/1 PREPARE TRANSACTION');
  $patient->do('BEGIN');
  $patient->do(q{INSERT INTO mark VALUES ('patient')});
  one($patient, 'SELECT coord.remote_exec(?, ?, ?)', $_, $mark, '["patient"]') foreach qw(far p2);
  send_async($patient, 'COMMIT');
  my $watch = reconnect($main);
  is(wait_until($watch, 1, 'SELECT count(*) FROM coord.twophase_active'), 1, 'a transaction waits for an answer');
  $proxy->tell('hang');
  ($name, $answer) = transfer($client, 'p1', 'p2');
  is($answer, 'no error', 'one without that participant goes on');
  is(marks($name, @nodes), 'main p1 p2', 'and commits at all');
  like(error_of($client, q{SELECT coord.remote_exec('far', 'SELECT 1', timeout => '200 ms')}), qr/^ZC010 participant "far"/, 'one with it is told');
  ok(!$patient->pg_ready, 'the first still waits');
  $proxy->tell($_) foreach 'off', 'drop', 'go';
  like(answer_of($patient), qr/^ZC010 participant "far"/, 'until the connection ends');
  is(settled(@nodes), '', 'nothing is left');
  is(marks('patient', @nodes), '', 'none');
  $_->disconnect foreach $client, $patient, $watch;
  $proxy->stop;
}

### No launcher

{
  my $name = leave_decided(sub { append_to_file($main->data_dir . '/postgresql.conf', "shared_preload_libraries = ''\n") });
  my $dbh = reconnect($main);
  like(error_of($dbh, $_), qr/^55000 coord's launcher is not running.*HINT:.*shared_preload_libraries/s, "without preload refused: $_")
    foreach $exec, 'SELECT coord.twophase_current()', q{CALL coord.twophase_run(ARRAY[coord.branch('p1', 'SELECT 1')])};
  $dbh->disconnect;
  is(our_gids($_), 1, 'without preload nothing is resolved at ' . $_->name) foreach $p1, $p2;
  append_to_file($main->data_dir . '/postgresql.conf', "shared_preload_libraries = 'coord'\n");
  $main->restart;
  is(settled(@nodes), '', 'preloaded again: nothing is left');
  is(marks($name, @nodes), 'main p1 p2', 'it is committed at all');
  $main->stop;
}
unlike(slurp_file($main->logfile), qr/PANIC|TRAP:/, 'nothing worse than that in the log');
$_->stop foreach $p1, $p2;
done_testing();
