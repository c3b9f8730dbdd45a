# CALL coord.await() holds no snapshot while it waits, and coord.saga_wait(),
# which has to, shows that the test can tell.

use strict;
use warnings FATAL => 'all';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('await');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'coord'");
$node->start;
$node->safe_psql('postgres', q{
  CREATE EXTENSION coord;
  CREATE FUNCTION gate(jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_xact_lock(1)';
  DO $$ BEGIN PERFORM coord.saga_define('gated', ARRAY[coord.step('gate', 'gate')]); END $$;
});

my $gate = $node->background_psql('postgres');
$gate->query_safe('SELECT pg_advisory_lock(1)');
my $id = $node->safe_psql('postgres', q{SELECT coord.saga_start('gated')});

my @cases = (
  ['CALL coord.await(', "CALL coord.await('saga', '$id', '1 min')", 'true'],
  ['SELECT coord.saga_wait(', "SELECT coord.saga_wait($id, '1 min')", 'false']);
my @waiters;
foreach my $case (@cases)
{
  my ($like, $statement, $without) = @$case;
  my $waiter = $node->background_psql('postgres');
  $waiter->query_until(qr/begun/, "\\echo begun\n$statement;\n");
  push @waiters, $waiter;
  ok($node->poll_query_until('postgres', qq{
      SELECT (backend_xmin IS NULL)::text FROM pg_stat_activity
      WHERE query LIKE '$like%' AND wait_event_type = 'Extension'}, $without),
    "$like..): backend_xmin is null: $without");
}
$gate->query_safe('SELECT pg_advisory_unlock(1)');
is($node->safe_psql('postgres', "SELECT coord.saga_wait($id, '20 s')"), 'completed', 'the saga ends');
$_->quit foreach @waiters;
$gate->quit;
$node->stop;
done_testing();
