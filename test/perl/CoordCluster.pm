# What the tests with clusters share: a cluster with coord, sessions by DBI, a
# few sagas whose effects can be counted, and waiting for an outcome.
package CoordCluster;

use strict;
use warnings FATAL => 'all';
use DBD::Pg;
use DBI;
use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(new_cluster install_sagas session one error_of eventually wait_until
  seconds configure log_size log_since wait_for_log_line want_standby WORKERS);

# How long to wait for what has to happen before the test has failed: less than the
# safety scan, which hides that nobody rang.
my $patience = 20;

# Coord's workers in the database $1 of a session to any database.
use constant WORKERS =>
  q{FROM pg_stat_activity WHERE backend_type = 'coord worker' AND datname = ?};

# A running cluster with coord preloaded; settings override that.
sub new_cluster
{
  my ($name, %settings) = @_;
  my $node = PostgreSQL::Test::Cluster->new($name);
  $node->init;
  configure($node, shared_preload_libraries => 'coord', %settings);
  $node->start;
  return $node;
}

sub configure
{
  my ($node, %settings) = @_;
  $node->append_conf('postgresql.conf', "$_ = '$settings{$_}'") foreach sort keys %settings;
  return;
}

# The extension, and in schema public:
#   note(doc), undo(doc)  leave a row in effect
#   gate(doc)             note, then wait for the advisory lock input.gate
#   nap(doc)              note, then sleep for an hour
# and sagas of them.
sub install_sagas
{
  my ($dbh) = @_;
  local $dbh->{PrintWarn} = 0;
  $dbh->do('CREATE EXTENSION coord');
  $dbh->do($_) foreach (
    q{CREATE TABLE effect (id bigint GENERATED ALWAYS AS IDENTITY, saga bigint, step text,
        phase text, role name, pid int, input jsonb)},
    q{GRANT SELECT, INSERT ON effect TO PUBLIC},
    q{CREATE FUNCTION note(doc jsonb) RETURNS jsonb LANGUAGE sql AS
      $$ INSERT INTO public.effect (saga, step, phase, role, pid, input)
         VALUES ((doc ->> 'saga_id')::bigint, doc ->> 'step', 'action', current_user,
                 pg_backend_pid(), doc -> 'input')
         RETURNING to_jsonb(step) $$},
    q{CREATE FUNCTION undo(doc jsonb) RETURNS void LANGUAGE sql AS
      $$ INSERT INTO public.effect (saga, step, phase, role, pid, input)
         VALUES ((doc ->> 'saga_id')::bigint, doc ->> 'step', 'compensation', current_user,
                 pg_backend_pid(), doc -> 'input') $$},
    q{CREATE FUNCTION gate(doc jsonb) RETURNS void LANGUAGE sql AS
      $$ SELECT public.note(doc);
         SELECT pg_advisory_xact_lock((doc #>> '{input,gate}')::bigint) $$},
    q{CREATE FUNCTION nap(doc jsonb) RETURNS void LANGUAGE sql AS
      $$ SELECT public.note(doc); SELECT pg_sleep(3600) $$},
    q{CREATE FUNCTION fail(doc jsonb) RETURNS void LANGUAGE plpgsql AS
      $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = coalesce(doc #>> '{input,sqlstate}', 'P0001'); END $$},
    q{SELECT coord.saga_define('quick', ARRAY[
        coord.step('one', 'public.note'), coord.step('two', 'public.note')])},
    q{SELECT coord.saga_define('gated', ARRAY[
        coord.step('before', 'public.note', 'public.undo'),
        coord.step('gate', 'public.gate'), coord.step('after', 'public.note')])},
    q{SELECT coord.saga_define('napping', ARRAY[
        coord.step('before', 'public.note', 'public.undo'),
        coord.step('nap', 'public.nap')])},
    q{SELECT coord.saga_define('failing', ARRAY[
        coord.step('before', 'public.note', 'public.undo'),
        coord.step('fail', 'public.fail', max_attempts => 2, retry_delay => '1 s')])},
    q{SELECT coord.saga_define('stopping', ARRAY[
        coord.step('before', 'public.note', 'public.undo'),
        coord.step('fail', 'public.fail')], on_exhausted => 'suspend')});
  return;
}

# A session by DBI that raises errors.
sub session
{
  my ($node, $database, %options) = @_;
  my $host = $options{host} || $node->host;
  my $port = $options{port} || $node->port;
  my $dbh = DBI->connect("dbi:Pg:dbname=$database;host=$host;port=$port",
    $options{user} || scalar(getpwuid($<)), '',
    { RaiseError => 1, PrintError => 0, PrintWarn => 0, AutoCommit => 1 });
  $dbh->do(q{SET client_min_messages = error}) unless $options{plain};
  return $dbh;
}

# The first value of the first row.
sub one
{
  my ($dbh, $sql, @values) = @_;
  my $row = $dbh->selectrow_arrayref($sql, undef, @values);
  return $row ? $row->[0] : undef;
}

# "SQLSTATE message" of the error that a statement raises.
sub error_of
{
  my ($dbh, $sql, @values) = @_;
  my $ok = eval { $dbh->do($sql, undef, @values); 1 };
  return 'no error' if $ok;
  my $message = $dbh->errstr;
  $message =~ s/^(ERROR|FATAL):\s+//;
  return $dbh->state . ' ' . $message;
}

# Wait until a query's value is $expected; the last value seen.
sub wait_until
{
  my ($dbh, $expected, $sql, @values) = @_;
  my $end = time + $patience;
  my $seen;
  while (1)
  {
    $seen = one($dbh, $sql, @values);
    return $seen if defined $seen && $seen eq $expected;
    return $seen if time > $end;
    sleep 0.02;
  }
}

# The same as a test.
sub eventually
{
  my ($name, $dbh, $expected, $sql, @values) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  return is(wait_until($dbh, $expected, $sql, @values), $expected, $name);
}

# How long it takes.
sub seconds(&)
{
  my ($code) = @_;
  my $begin = time;
  $code->();
  return time - $begin;
}

sub log_size
{
  my ($node) = @_;
  return -s $node->logfile;
}

sub log_since
{
  my ($node, $position) = @_;
  return substr(slurp_file($node->logfile), $position);
}

# Does the log from $position on have a match before patience ends?
sub wait_for_log_line
{
  my ($node, $pattern, $position) = @_;
  my $end = time + $patience;
  while (time < $end)
  {
    return 1 if log_since($node, $position) =~ $pattern;
    sleep 0.05;
  }
  return 0;
}

# From here on commits wait for a synchronous standby $name that is not there: 1, or 0
# when they still do not after a while.  A session that has read the setting is not
# enough, since it is the checkpointer that puts it in force.
sub want_standby
{
  my ($node, $name) = @_;
  my $admin = session($node, 'postgres');
  $admin->do("ALTER SYSTEM SET synchronous_standby_names = '$name'");
  $node->reload;
  my $end = time + $patience;
  my $waits = 0;
  while (!$waits && time < $end)
  {
    my $probe = session($node, 'postgres');
    $probe->do(q{SELECT pg_logical_emit_message(true, 'probe', ''), pg_current_xact_id()}, { pg_async => DBD::Pg::PG_ASYNC() });
    until ($waits || $probe->pg_ready)
    {
      $waits = one($admin, q{SELECT count(*) FROM pg_stat_activity WHERE pid = ? AND wait_event = 'SyncRep'}, $probe->{pg_pid});
    }
    one($admin, 'SELECT pg_cancel_backend(?)', $probe->{pg_pid}) if $waits;
    eval { $probe->pg_result };
    $probe->disconnect;
  }
  $admin->disconnect;
  return $waits;
}

1;
