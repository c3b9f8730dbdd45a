# Locks and leases for tests with clusters: asking for them, waiting for them in
# another session, servers that are killed and come back, and PgBouncer.
package CoordLocks;

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use DBD::Pg;
use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(acquire release later outcome wait_for_waiters lock_waiters kill_server crash_server
  start_bouncer stop_bouncer pooled);

# The token of a lease, undef: not granted.
sub acquire
{
  my ($dbh, $name, $owner, %options) = @_;
  my @names = sort keys %options;
  return one($dbh, 'SELECT token FROM coord.lease_acquire(?, ?' . join('', map { ", $_ => ?" } @names) . ')',
    $name, $owner, @options{@names});
}

sub release
{
  my ($dbh, $name, $token) = @_;
  return one($dbh, q{SELECT coord.lease_release(?, ?)}, $name, $token);
}

# Begin a statement, and get its first value; or "SQLSTATE message", if it fails.
sub later
{
  my ($dbh, $sql, @values) = @_;
  my $statement = $dbh->prepare($sql, { pg_async => DBD::Pg::PG_ASYNC() });
  $statement->execute(@values);
  return [ $dbh, $statement ];
}

sub outcome
{
  my ($later) = @_;
  my ($dbh, $statement) = @$later;
  my $row;
  my $ok = eval { $dbh->pg_result; $row = $statement->fetchrow_arrayref; 1 };
  my $value = $ok ? $row && $row->[0] : $dbh->state . ' ' . $dbh->errstr =~ s/^(ERROR|FATAL):\s+//r;
  # When this handle goes later, it would take the next statement with it.
  @$later = ();
  return $value;
}

# The processes that wait for a name, in their order.
sub lock_waiters
{
  my ($dbh, $name) = @_;
  return one($dbh, q{SELECT coalesce(string_agg(pid::text, ' ' ORDER BY position), '')
    FROM coord.lock_waiters WHERE name = ?}, $name);
}

# Until just these wait, in this order.
sub wait_for_waiters
{
  my ($dbh, $name, @pids) = @_;
  my $expected = join ' ', @pids;
  my $end = time + 20;
  my $seen;
  while (1)
  {
    $seen = lock_waiters($dbh, $name);
    return 1 if $seen eq $expected;
    last if time > $end;
    sleep 0.02;
  }
  diag("for $name wait: $seen, expected: $expected");
  return 0;
}

# The postmaster is killed, and a new one started when the old one's children are gone.
sub kill_server
{
  my ($node) = @_;
  my $postmaster = (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];
  my $end = time + 60;
  $node->kill9;
  while (kill(0, $postmaster) || grep { (readlink("/proc/$_/cwd") // '') eq $node->data_dir } map { m{(\d+)} } glob '/proc/[0-9]*')
  {
    die 'processes of the server do not end' if time > $end;
    sleep 0.05;
  }
  $node->start;
  return;
}

# A backend is killed; the postmaster makes shared memory anew.  $dbh is one of its
# sessions; for another backend, give its process id.
sub crash_server
{
  my ($node, $dbh, $pid) = @_;
  my $position = log_size($node);
  kill 'KILL', $pid // $dbh->{pg_pid};
  wait_for_log_line($node, qr/all server processes terminated; reinitializing.*database system is ready to accept connections/s,
    $position) or die 'the server does not come back';
  eval { $dbh->disconnect };
  return;
}

# PgBouncer in transaction mode with two connections.
sub start_bouncer
{
  my ($node, $database) = @_;
  # The program is in sbin, which is not in everybody's path.
  local $ENV{PATH} = "$ENV{PATH}:/usr/sbin";
  my $dir = PostgreSQL::Test::Utils::tempdir;
  my $port = PostgreSQL::Test::Cluster::get_free_port();
  my $user = getpwuid($<);
  append_to_file("$dir/users", qq{"$user" ""\n});
  append_to_file("$dir/pgbouncer.ini", join "\n", '[databases]',
    "$database = host=" . $node->host . ' port=' . $node->port . " dbname=$database", '[pgbouncer]',
    'listen_addr = 127.0.0.1', "listen_port = $port", 'unix_socket_dir =', 'auth_type = trust',
    "auth_file = $dir/users", 'pool_mode = transaction', 'default_pool_size = 2', 'max_client_conn = 50',
    "logfile = $dir/log", "pidfile = $dir/pid", 'ignore_startup_parameters = extra_float_digits', '');
  my $run = IPC::Run::start([ 'pgbouncer', '-q', "$dir/pgbouncer.ini" ], '<', \undef, '>', '/dev/null', '2>', "$dir/err");
  return { node => $node, database => $database, port => $port, run => $run };
}

sub pooled
{
  my ($bouncer) = @_;
  my $end = time + 20;
  while (1)
  {
    my $dbh = eval {
      session($bouncer->{node}, $bouncer->{database}, host => '127.0.0.1', port => $bouncer->{port}, plain => 1);
    };
    if ($dbh)
    {
      # Statements that are prepared in one connection are not in the next.
      $dbh->{pg_server_prepare} = 0;
      return $dbh;
    }
    die "no PgBouncer: $@" if time > $end;
    sleep 0.05;
  }
}

sub stop_bouncer
{
  my ($bouncer) = @_;
  $bouncer->{run}->signal('INT');
  $bouncer->{run}->finish;
  return;
}

1;
