# A worker dies, or fails, before the effects are written back, after they are and
# before COMMIT, and right after a step: each effect is there once afterwards.

use strict;
use warnings FATAL => 'all';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('fault');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'coord'");
$node->start;
$node->safe_psql('postgres', q{
  CREATE EXTENSION coord;
  CREATE TABLE effect (saga text, what text);
  CREATE FUNCTION act(doc jsonb) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO effect VALUES (doc ->> 'key', doc ->> 'step') $$;
  CREATE FUNCTION undo(doc jsonb) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO effect VALUES (doc ->> 'key', 'undo ' || (doc ->> 'step')) $$;
  CREATE FUNCTION fail(doc jsonb) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'no'; END $$;
  DO $$ BEGIN
    PERFORM coord.saga_define('good', ARRAY[coord.step('a', 'act'), coord.step('b', 'act')]);
    PERFORM coord.saga_define('bad', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'fail')]);
  END $$;
});

# What a new saga of each kind has done when it is finished.
my %expected = (good => 'completed: a, b', bad => 'compensated: a, undo a');

sub set_fault
{
  my ($fault) = @_;
  $node->safe_psql('postgres', "ALTER SYSTEM SET coord.debug_point = '$fault'");
  $node->safe_psql('postgres', 'SELECT pg_reload_conf()');
}

my $number = 0;
foreach my $point (qw(saga_after_call saga_before_flush saga_after_flush))
{
  foreach my $action (qw(crash error))
  {
    my @keys;
    set_fault("$action:$point");
    my $log = -s $node->logfile;
    foreach my $name (sort keys %expected)
    {
      my $key = "$name " . ++$number;
      push @keys, [ $name, $key ];
    }
    # The server may be gone before the client has its answer: then the key, like
    # a real client's, makes it safe to start again below.
    $node->psql('postgres', join(';', map { "SELECT coord.saga_start('$_->[0]', key => '$_->[1]')" } @keys),
      on_error_die => 0, on_error_stop => 0);
    if ($action eq 'crash')
    {
      # The server goes down with its worker, restart_after_crash being off.
      my $down = 0;
      foreach (1 .. 200)
      {
        $down = !-e $node->data_dir . '/postmaster.pid';
        last if $down;
        select undef, undef, undef, 0.1;
      }
      ok($down, "$action at $point: fired");
      $node->_update_pid(0);
      $node->append_conf('postgresql.auto.conf', "coord.debug_point = ''");
      $node->start;
    }
    else
    {
      ok($node->poll_query_until('postgres', $point eq 'saga_after_call'
          ? q{SELECT count(*) > 0 FROM coord.saga_log WHERE error LIKE 'debug point%'}
          : q{SELECT count(*) > 0 FROM coord.sagas WHERE status = 'suspended'}),
        "$action at $point: fired")
        if $point eq 'saga_after_call';
      $node->wait_for_log(qr/could not be advanced: debug point "$point"/, $log) if $point ne 'saga_after_call';
      set_fault('');
    }
    foreach my $case (@keys)
    {
      my ($name, $key) = @$case;
      my $id = $node->safe_psql('postgres', "SELECT coord.saga_start('$name', key => '$key')");
      my $status = $node->safe_psql('postgres', "SELECT coord.saga_wait($id, '30 s')");
      if ($action eq 'error')
      {
        # A step that raises has failed; what fails outside of steps suspends.
        $status = $node->safe_psql('postgres', "SELECT coord.saga_retry($id)") if $status eq 'suspended';
        $status = $node->safe_psql('postgres', "SELECT coord.saga_wait($id, '30 s')");
      }
      my $done = $node->safe_psql('postgres', "SELECT string_agg(what, ', ' ORDER BY what) FROM effect WHERE saga = '$key'");
      if ($action eq 'error' && $point eq 'saga_after_call')
      {
        is("$status: $done", 'failed: ', "$action at $point: $name");
      }
      else
      {
        is("$status: $done", $expected{$name}, "$action at $point: $name");
      }
    }
  }
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM coord.stuck'), 0, 'nothing is stuck');
$node->stop;
done_testing();
