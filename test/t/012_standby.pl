# A streaming standby is quiet and can be looked at; after promotion it goes on by
# itself.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1);
configure($primary, shared_preload_libraries => 'coord', 'coord.worker_idle_timeout' => '1s');
$primary->start;
my $dbh = session($primary, 'postgres');
install_sagas($dbh);
my $done = one($dbh, q{SELECT coord.saga_start('quick')});
wait_until($dbh, 'completed', q{SELECT coord.saga_status(?)}, $done);
my $suspended = one($dbh, q{SELECT coord.saga_start('stopping')});
wait_until($dbh, 'suspended', q{SELECT coord.saga_status(?)}, $suspended);

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

# Work that the primary does not get to: due at once, due later, a retry, and one
# in the middle of a step.
one($dbh, q{SELECT pg_advisory_lock(1)});
my $middle = one($dbh, q{SELECT coord.saga_start('gated', '{"gate": 1}')});
wait_until($dbh, 1, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord worker' AND wait_event = 'advisory'});
my $later = one($dbh, q{SELECT coord.saga_start('quick', start_at => now() + '3 s')});
my $never = one($dbh, q{SELECT coord.saga_start('quick', start_at => now() + '1 day')});
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

my $reader = session($standby, 'postgres');
is(one($reader, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'coord'}), 0, 'no process of coord on the standby');
is(one($reader, q{SELECT string_agg(id || ' ' || status, ',' ORDER BY id) FROM coord.sagas}),
  "$done completed,$suspended suspended,$middle running,$later running,$never running", 'coord.sagas is readable');
is(one($reader, q{SELECT coord.saga_status(?)}, $done), 'completed', 'saga_status() works');
is(one($reader, q{SELECT coord.saga_output(?)}, $done), '{"one": "one", "two": "two"}', 'saga_output() works');
is(one($reader, q{SELECT count(*) FROM coord.stuck WHERE kind = 'saga'}), 1, 'coord.stuck works');
is(one($reader, qq{SELECT count(*) FROM $_}) >= 0, 1, "$_ works")
  foreach qw(coord.saga_steps coord.saga_log coord.saga_definitions coord.workers);
like(one($reader, q{SELECT coord.saga_picture(?)}, $done), qr/^graph TD/, 'saga_picture() works');

foreach my $verb (
  q{SELECT coord.saga_start('quick')}, q{SELECT coord.saga_start('quick', key => 'k')},
  q{SELECT coord.saga_define('new', ARRAY[coord.step('one', 'public.note')])}, qq{SELECT coord.saga_cancel($suspended)},
  qq{SELECT coord.saga_pause($middle)}, qq{SELECT coord.saga_retry($suspended)}, qq{SELECT coord.saga_abandon($suspended)},
  q{CALL coord.run_pending()}, q{CALL coord.saga_run('quick')}, q{SELECT coord.pause()}, q{SELECT coord.resume()},
  q{CALL coord.drain('1 s')}, q{SELECT coord.grant_use('saga', 'quick', 'coord_user')}, q{SELECT coord.start_worker()})
{
  like(error_of($reader, $verb), qr/^(25006 cannot |55000 .*recovery)/, "$verb is refused on a standby");
}

my $position = log_size($standby);
$dbh->disconnect;
$primary->stop('immediate');
$standby->promote;
$reader->disconnect;
$reader = session($standby, 'postgres');
eventually('a saga in the middle of a step is done again after promotion', $reader, 'completed',
  q{SELECT coord.saga_status(?)}, $middle);
is(one($reader, q{SELECT string_agg(step, ',' ORDER BY id) FROM effect WHERE saga = ?}, $middle), 'before,gate,after',
  'each step once');
eventually('a delayed one is done when its time comes', $reader, 'completed', q{SELECT coord.saga_status(?)}, $later);
is(one($reader, q{SELECT coord.saga_status(?)}, $never), 'running', 'another is still waiting');
my $id = one($reader, q{SELECT coord.saga_start('quick')});
eventually('new ones are done', $reader, 'completed', q{SELECT coord.saga_status(?)}, $id);
is(one($reader, q{SELECT count(*) FROM coord.stuck WHERE kind <> 'saga'}), 0, 'a promoted standby is no copy');
unlike(log_since($standby, $position), qr/PANIC|is a copy/, 'nothing bad in its log');
$reader->disconnect;

# coord.enabled = off, set before a clone's first start, keeps it quiet.
my $clone = PostgreSQL::Test::Cluster->new('clone');
$clone->init_from_backup($primary, 'base');
configure($clone, 'coord.enabled' => 'off');
$clone->start;
$dbh = session($clone, 'postgres');
$id = one($dbh, q{SELECT coord.saga_start('quick')});
is(one($dbh, q{SELECT waits_for FROM coord.stuck WHERE kind = 'engine'}), 'an operator: coord.enabled is off',
  'a physical clone with coord.enabled = off says so');
is(one($dbh, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord worker'}), 0, 'and has no worker');
is(one($dbh, q{SELECT coord.saga_status(?)}, $id), 'running', 'and does nothing');
$dbh->disconnect;

$clone->stop;
$standby->stop;
done_testing();
