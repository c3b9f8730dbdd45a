# What the tests of two-phase commit share: a coordinator and participants, each a
# cluster with accounts; transfers over all of them, and what must hold afterwards.
package CoordTwophase;

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use DBD::Pg;
use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(new_participant new_coordinator add_server add_accounts transfer_branches
  reconnect restart_dead kill_postmaster processes_of stop_processes continue_processes
  send_async answer_of gate_at wait_at_gate open_gate
  marks total our_gids settled DEBUG_CLASS);

use constant DEBUG_CLASS => 20190315;

# How long what is left may take until it is finished, without an operator.
my $patience = 60;

# A running cluster that can prepare transactions.
sub new_participant
{
  my ($name, %settings) = @_;
  my $node = PostgreSQL::Test::Cluster->new($name);
  $node->init(allows_streaming => delete $settings{allows_streaming} || 0);
  configure($node, max_prepared_transactions => 40, restart_after_crash => 'on', %settings);
  $node->start;
  add_accounts($node);
  return $node;
}

# A running cluster with coord, its own account, and a server for each participant
# by its name.
sub new_coordinator
{
  my ($name, $participants, %settings) = @_;
  my $node = PostgreSQL::Test::Cluster->new($name);
  $node->init(allows_streaming => delete $settings{allows_streaming} || 0);
  configure($node, shared_preload_libraries => 'coord', restart_after_crash => 'on', %settings);
  $node->start;
  add_accounts($node);
  $node->safe_psql('postgres', 'CREATE EXTENSION postgres_fdw; CREATE EXTENSION coord');
  add_server($node, $_->name, $_) foreach @$participants;
  return $node;
}

# A server, and the mapping of who runs the tests.
sub add_server
{
  my ($node, $name, $participant, %options) = @_;
  my $host = $options{host} || $participant->host;
  my $port = $options{port} || $participant->port;
  my $database = $options{dbname} || 'postgres';
  $node->safe_psql('postgres', qq{
    CREATE SERVER $name FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$host', port '$port', dbname '$database');
    CREATE USER MAPPING FOR CURRENT_USER SERVER $name});
  return;
}

sub add_accounts
{
  my ($node, $database) = @_;
  $node->safe_psql($database || 'postgres', q{
    CREATE TABLE acc (id int PRIMARY KEY, bal bigint NOT NULL);
    INSERT INTO acc SELECT i, 1000 FROM generate_series(1, 10) i;
    CREATE TABLE mark (name text PRIMARY KEY)});
  return;
}

# The branches of a transfer called $name: 2 from here, 1 to each participant.
sub transfer_branches
{
  my ($name, @servers) = @_;
  my $sql = q{WITH m AS (INSERT INTO mark VALUES ('%s')) UPDATE acc SET bal = bal + (%d) WHERE id = 1};
  my @branches = sprintf "coord.branch(NULL, \$b\$$sql\$b\$)", $name, -@servers;
  push @branches, sprintf "coord.branch('%s', \$b\$$sql\$b\$)", $_, $name, 1 foreach @servers;
  return 'ARRAY[' . join(', ', @branches) . ']';
}

### Processes

# A session to a cluster that may be in recovery, or restarting.
sub reconnect
{
  my ($node, $database) = @_;
  my $end = time + $patience;
  while (1)
  {
    my $dbh = eval {
      my $try = session($node, $database || 'postgres');
      one($try, 'SELECT 1');
      $try;
    };
    return $dbh if $dbh;
    die $@ if time > $end;
    sleep 0.05;
  }
}

# kill -9 of the postmaster; its children notice.
sub kill_postmaster
{
  my ($node) = @_;
  my @processes = processes_of($node);
  $node->kill9;
  my $end = time + $patience;
  while (grep { kill 0, $_ } @processes)
  {
    last if time > $end;
    sleep 0.02;
  }
  return;
}

# Start a cluster that crashed.
sub restart_dead
{
  my ($node) = @_;
  my $end = time + $patience;
  until ($node->start(fail_ok => 1))
  {
    die 'cannot start ' . $node->name if time > $end;
    sleep 0.1;
  }
  return;
}

# The postmaster and its children.
sub processes_of
{
  my ($node) = @_;
  my $postmaster = (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];
  my @result = ($postmaster);
  foreach my $file (glob '/proc/[0-9]*/stat')
  {
    my $stat = eval { slurp_file($file) } or next;
    my ($pid, $parent) = $stat =~ /^(\d+) \(.*\) \S (\d+)/s or next;
    push @result, $pid if $parent == $postmaster;
  }
  return @result;
}

# A server that hangs: no process of it runs.  Returns them.
sub stop_processes
{
  my ($node) = @_;
  my @processes = processes_of($node);
  kill 'STOP', @processes;
  return @processes;
}

sub continue_processes
{
  my @processes = @_;
  kill 'CONT', @processes;
  return;
}

### Statements that are waited for elsewhere

sub send_async
{
  my ($dbh, $sql) = @_;
  $dbh->do($sql, { pg_async => DBD::Pg::PG_ASYNC() });
  return;
}

# 'ok', or SQLSTATE and message, or 'lost'.  A driver of 2026 takes a cancelled statement
# for one whose cancelling it has asked for, and raises nothing.
sub answer_of
{
  my ($dbh) = @_;
  my $end = time + $patience;
  my $ready;
  until ($ready = eval { $dbh->pg_ready })
  {
    last if $@;
    die 'no answer' if time > $end;
    sleep 0.005;
  }
  my $raised = !eval { $dbh->pg_result; 1 };
  my $state = $dbh->state;
  return 'ok' if !$raised && $state =~ /^(?:00000)?$/;
  my $message = $dbh->errstr || '';
  return 'lost' if $state =~ /^(08|57P0[12])/ || $message =~ /^(FATAL|WARNING|server closed|no connection)/;
  $message =~ s/^(ERROR|FATAL):\s+//;
  return "$state $message";
}

# Hold the lock that a process at the debug point waits for, in a session of its own.
sub gate_at
{
  my ($node, $point) = @_;
  my $gate = reconnect($node);
  one($gate, 'SELECT pg_advisory_lock(?, hashtext(?))', DEBUG_CLASS, $point);
  return $gate;
}

# The process that waits there; 0: none came.
sub wait_at_gate
{
  my ($gate, $point) = @_;
  my $waiter = q{SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = ?
    AND objid = hashtext(?)::bigint & 4294967295 AND NOT granted};
  my $end = time + $patience;
  while (time < $end)
  {
    my $pid = one($gate, $waiter, DEBUG_CLASS, $point);
    return $pid if $pid;
    sleep 0.005;
  }
  return 0;
}

sub open_gate
{
  my ($gate) = @_;
  eval { $gate->disconnect };
  return;
}

### What must hold

# Where a transfer left its mark, as the names of clusters.
sub marks
{
  my ($name, @nodes) = @_;
  return join ' ', map { $_->name } grep {
    my $dbh = reconnect($_);
    my $found = one($dbh, 'SELECT count(*) FROM mark WHERE name = ?', $name);
    $dbh->disconnect;
    $found
  } @nodes;
}

sub total
{
  my (@nodes) = @_;
  my $total = 0;
  foreach (@nodes)
  {
    my $dbh = reconnect($_);
    $total += one($dbh, 'SELECT sum(bal) FROM acc');
    $dbh->disconnect;
  }
  return $total;
}

# What of coord's is prepared at a cluster, in whatever database.
sub our_gids
{
  my ($node) = @_;
  my $dbh = reconnect($node);
  my $count = one($dbh, q{SELECT count(*) FROM pg_prepared_xacts WHERE gid LIKE 'coord:%'});
  $dbh->disconnect;
  return $count;
}

# Wait until nothing is left: nothing prepared, pending, active or in doubt.  What is,
# when patience ends; '' is nothing.
sub settled
{
  my ($coordinator, @participants) = @_;
  my $end = time + $patience;
  my @left;
  while (1)
  {
    my $dbh = reconnect($coordinator);
    @left = map { $_->name . ': prepared' } grep { our_gids($_) > 0 } @participants;
    push @left, grep {
      eval { one($dbh, "SELECT count(*) FROM coord.twophase_$_") } // 1
    } qw(pending in_doubt active);
    eval { $dbh->disconnect };
    return '' unless @left;
    return join ', ', @left if time > $end;
    sleep 0.05;
  }
}

1;
