# pg_upgrade with coord preloaded on both sides and open sagas: no worker acts
# meanwhile, all is there, and the new cluster waits for coord.resume().

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $old = new_cluster('old');
my $dbh = session($old, 'postgres');
$dbh->do('CREATE ROLE alice LOGIN');
install_sagas($dbh);
$dbh->do('GRANT coord_user TO alice');
one($dbh, q{SELECT coord.grant_use('saga', 'quick', 'alice')});
my $done = one($dbh, q{SELECT coord.saga_start('quick', key => 'done')});
my $suspended = one($dbh, q{SELECT coord.saga_start('stopping')});
eventually('one is completed', $dbh, 'completed', q{SELECT coord.saga_status(?)}, $done);
eventually('one is suspended', $dbh, 'suspended', q{SELECT coord.saga_status(?)}, $suspended);
one($dbh, q{SELECT pg_advisory_lock(1)});
my $middle = one($dbh, q{SELECT coord.saga_start('gated', '{"gate": 1}')});
wait_until($dbh, 1, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord worker' AND wait_event = 'advisory'});
my $alice = session($old, 'postgres', user => 'alice');
my $later = one($alice, q{SELECT coord.saga_start('quick', start_at => now() + '1 s')});
$alice->disconnect;
my $contents = q{SELECT string_agg(t::text, E'\n' ORDER BY t::text) FROM (SELECT s.*, st.step, st.status, st.result, st.attempt
  FROM coord.sagas s LEFT JOIN coord.saga_steps st ON st.saga_id = s.id) t};
my $log = q{SELECT string_agg(t::text, E'\n' ORDER BY t::text) FROM coord.saga_log t};
$dbh->disconnect;
$old->stop('immediate');
$old->start;
$dbh = session($old, 'postgres');
one($dbh, q{SELECT coord.pause('upgrade')});
is(one($dbh, q{CALL coord.drain('20 s')}), 1, 'drained');
my %before = (contents => one($dbh, $contents), log => one($dbh, $log));
$dbh->disconnect;
$old->stop;

my $new = PostgreSQL::Test::Cluster->new('new');
$new->init;
configure($new, shared_preload_libraries => 'coord');
my $bindir = $new->config_data('--bindir');
my @upgrade = ('pg_upgrade', '--no-sync', '--retain', '-d', $old->data_dir, '-D', $new->data_dir, '-b', $bindir, '-B', $bindir,
  '-s', $new->host, '-p', $old->port, '-P', $new->port);
chdir PostgreSQL::Test::Utils::tempdir or die $!;
command_ok([ @upgrade, '--check' ], 'pg_upgrade --check');
command_ok(\@upgrade, 'pg_upgrade');

my @logs = glob($new->data_dir . '/pg_upgrade_output.d/*/log/pg_upgrade_server.log');
ok(scalar @logs, 'the servers of pg_upgrade wrote logs');
unlike(join('', map { slurp_file($_) } @logs), qr/coord launcher started|background worker "coord|WARNING:  coord/, 'and started no process of coord');

my $position = 0;
$new->start;
$dbh = session($new, 'postgres');
ok(wait_for_log_line($new, qr/WARNING: .*is a copy and nothing will run in it/, $position), 'the new cluster is held as a copy');
is(one($dbh, $contents), $before{contents}, 'all sagas and steps are there');
is(one($dbh, $log), $before{log}, 'and the log');
is(one($dbh, q{SELECT coord.saga_start('quick', key => 'done')}), $done, 'and keys');
is(one($dbh, q{SELECT count(*) FROM coord.stuck WHERE waits_for ~ 'copy'}), 1, 'coord.stuck says what it waits for');
my $repair = one($dbh, q{SELECT repair FROM coord.stuck WHERE waits_for ~ 'copy'});
is(error_of($dbh, $repair), 'no error', 'the repair');
eventually("saga $_ is done then", $dbh, 'completed', q{SELECT coord.saga_status(?)}, $_) foreach $middle, $later;
is(one($dbh, q{SELECT string_agg(step || ' ' || (role = 'alice'), ',' ORDER BY id) FROM effect WHERE saga = ?}, $later),
  'one true,two true', 'as the role that started it');
is(one($dbh, q{SELECT string_agg(step, ',' ORDER BY id) FROM effect WHERE saga = ?}, $middle), 'before,gate,after',
  'each step once');
one($dbh, q{SELECT coord.saga_skip(?, 'fail')}, $suspended);
eventually('a suspended one can be repaired', $dbh, 'completed', q{SELECT coord.saga_status(?)}, $suspended);
is(one($dbh, q{SELECT count(*) FROM coord.stuck}), 0, 'nothing is stuck');
my $id = one($dbh, q{SELECT coord.saga_start('quick')});
eventually('new ones are done', $dbh, 'completed', q{SELECT coord.saga_status(?)}, $id);
$dbh->disconnect;
$new->stop;
done_testing();
