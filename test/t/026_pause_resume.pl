# A worker that has just seen a pause must not undo the resume that came after it:
# then no worker would ever come again, and nothing would say so.

use strict;
use warnings FATAL => 'all';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('pause');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'coord'\ncoord.debug_point = 'wait:worker_state_read'");
$node->start;
$node->safe_psql('postgres', q{
  CREATE EXTENSION coord;
  CREATE FUNCTION act(jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
  DO $$ BEGIN PERFORM coord.saga_define('quick', ARRAY[coord.step('one', 'act')]); END $$;
  SELECT coord.pause();
});
ok($node->poll_query_until('postgres', q{SELECT count(*) FROM coord.workers WHERE backend_type = 'coord worker'}, '0'),
  'no worker during a pause');

# A worker is sent to look, and has read that the engine is paused.
my $gate = $node->background_psql('postgres');
$gate->query_safe(q{SELECT pg_advisory_lock(20190315, hashtext('worker_state_read'))});
$node->safe_psql('postgres', 'SELECT coord.start_worker()');
ok($node->poll_query_until('postgres', q{
    SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord worker' AND wait_event = 'advisory'}, '1'),
  'a worker has read the state');
$node->safe_psql('postgres', q{SELECT coord.resume(); SELECT coord.saga_start('quick')});
$gate->query_safe(q{SELECT pg_advisory_unlock_all()});
is($node->safe_psql('postgres', q{SELECT coord.saga_wait(max(id), '20 s') FROM coord.sagas}), 'completed',
  'the resume holds');
$gate->quit;
$node->stop;
done_testing();
