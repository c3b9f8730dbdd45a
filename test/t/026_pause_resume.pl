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

# A worker that applies a pause which was left for it has the saga in hand; the resume that
# comes meanwhile is passed over by whoever looks, and must not be forgotten.
$node->safe_psql('postgres', q{
  CREATE FUNCTION hold(jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_xact_lock_shared(7)';
  DO $$ BEGIN PERFORM coord.saga_define('held', ARRAY[coord.step('one', 'hold'), coord.step('two', 'act')]); END $$;
});
$node->append_conf('postgresql.conf', "coord.debug_point = 'wait:requests_applied'");
$node->reload;
my $step = $node->background_psql('postgres');
$step->query_safe(q{SELECT pg_advisory_lock(7)});
$gate->query_safe(q{SELECT pg_advisory_lock(20190315, hashtext('requests_applied'))});
my $id = $node->safe_psql('postgres', q{SELECT coord.saga_start('held')});
my $waiting = q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 20190315 AND NOT granted};
ok($node->poll_query_until('postgres', q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted}, '1'),
  'a step runs');
$node->safe_psql('postgres', "SELECT coord.saga_pause($id)");
$step->query_safe(q{SELECT pg_advisory_unlock(7)});
ok($node->poll_query_until('postgres', "$waiting AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'transactionid' AND granted)", '1'),
  'a worker applies the pause');
$node->safe_psql('postgres', "SELECT coord.saga_resume($id)");
my $before = $node->safe_psql('postgres', $waiting);
$node->safe_psql('postgres', 'SELECT coord.start_worker()');
ok($node->poll_query_until('postgres', $waiting, $before + 1), 'another one has looked for requests');
$gate->query_safe(q{SELECT pg_advisory_unlock_all()});
is($node->safe_psql('postgres', "SELECT coord.saga_wait($id, '20 s')"), 'completed', 'the resume is applied, too');
$step->quit;
$gate->quit;
$node->stop;
done_testing();
