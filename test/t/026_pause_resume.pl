# A worker that has just seen a pause must not undo the resume that came after it:
# then no worker would ever come again, and nothing would say so.

use strict;
use warnings FATAL => 'all';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('pause');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'coord'\ncoord.max_workers = 4");
$node->start;
$node->safe_psql('postgres', q{
  CREATE EXTENSION coord;
  CREATE FUNCTION act(jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
  DO $$ BEGIN PERFORM coord.saga_define('quick', ARRAY[coord.step('one', 'act')]); END $$;
});

# Each start wakes a worker, which meets a pause that is over a moment later.
my $round = q{SELECT coord.saga_start('quick'); SELECT coord.pause(); SELECT coord.saga_start('quick'); SELECT coord.resume();};
foreach my $i (1 .. 20)
{
  $node->safe_psql('postgres', $round x 10);
  my $unfinished = $node->poll_query_until('postgres', 'SELECT count(*) FROM coord_internal.saga', '0');
  ok($unfinished, "round $i: all that was started is finished") or last;
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM coord.sagas WHERE status = $$completed$$'), 400, 'each saga once');
$node->stop;
done_testing();
