# Without shared_preload_libraries all that a session can call works; another
# version of the library or of the SQL objects is told, not obeyed; and a new
# library file under a running server disturbs nothing.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use File::Basename qw(dirname);
use File::Copy qw(copy);
use File::Path qw(make_path);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir;

### Without preload

my $node = new_cluster('lazy', shared_preload_libraries => '', max_prepared_transactions => 5,
  'coord.worker_idle_timeout' => '1h');
my $dbh = session($node, 'postgres');
install_sagas($dbh);
is(one($dbh, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'coord'}), 0, 'no process of coord');
$dbh->disconnect;
$dbh = session($node, 'postgres');

my $id = one($dbh, q{SELECT coord.saga_start('quick', key => 'k')});
is(one($dbh, q{SELECT coord.saga_start('quick', key => 'k')}), $id, 'a start is idempotent');
my $failing = one($dbh, q{SELECT coord.saga_start('failing')});
my $later = one($dbh, q{SELECT coord.saga_start('quick', start_at => now() + '1 day')});
is(one($dbh, q{SELECT coord.saga_status(?)}, $id), 'running', 'nobody does it');
cmp_ok(one($dbh, 'CALL coord.run_pending()'), '>=', 2, 'run_pending() does what is due');
is(one($dbh, q{SELECT string_agg(coord.saga_status(id), ',' ORDER BY id) FROM coord.sagas}),
  'completed,compensated,running', 'to its end');
is(one($dbh, q{SELECT count(*) FROM effect WHERE saga = ?}, $id), 2, 'with its effects');
is(one($dbh, q{SELECT status FROM coord.sagas WHERE id = ?}, $failing), 'compensated', 'a failed one is undone');
is(join('|', @{ $dbh->selectrow_arrayref(q{CALL coord.saga_run('quick', '{}')}) }[1, 2]),
  'completed|{"one": "one", "two": "two"}', 'saga_run() runs here and now');
one($dbh, q{SELECT coord.saga_pause(?)}, $later);
is(one($dbh, q{SELECT coord.saga_status(?)}, $later), 'paused', 'an operator can pause a saga');
one($dbh, q{SELECT coord.saga_resume(?)}, $later);
is(one($dbh, q{SELECT coord.saga_define('other', ARRAY[coord.step('one', 'public.note')])}), 1, 'a definition');
$dbh->do(q{SET coord.test_now = '2100-01-01'});
is(one($dbh, q{SELECT repair FROM coord.stuck WHERE kind = 'worker'}), 'SELECT coord.start_worker()',
  'coord.stuck says what to do about what is due');
my $repair = one($dbh, q{SELECT repair FROM coord.stuck WHERE kind = 'worker'});
$dbh->do(q{RESET coord.test_now});

# A worker by hand.
$id = one($dbh, q{SELECT coord.saga_start('quick')});
is(error_of($dbh, $repair), 'no error', 'the repair');
eventually('the worker does what was due', $dbh, 'completed', q{SELECT coord.saga_status(?)}, $id);
$id = one($dbh, q{SELECT coord.saga_start('quick')});
eventually('and what comes', $dbh, 'completed', q{SELECT coord.saga_status(?)}, $id);
is(one($dbh, q{SELECT count(*) FROM coord.workers WHERE backend_type = 'coord worker'}), 1, 'coord.workers shows it');
is(one($dbh, q{SELECT usename FROM pg_stat_activity WHERE backend_type = 'coord worker'}), 'coord_worker',
  'it is nobody');
one($dbh, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'coord worker'});
eventually('it can be ended', $dbh, 0, q{SELECT count(*) FROM coord.workers WHERE backend_type = 'coord worker'});
$dbh->disconnect;
$node->stop;

### Versions that differ

$node->append_conf('postgresql.conf', "shared_preload_libraries = 'coord'");
$node->start;
$dbh = session($node, 'postgres');
$id = one($dbh, q{SELECT coord.saga_start('quick')});
eventually('a worker is there', $dbh, 'completed', q{SELECT coord.saga_status(?)}, $id);
my $position = log_size($node);
my $owner = session($node, 'postgres');
$owner->do('ALTER FUNCTION coord_internal.version_1_0() RENAME TO version_0_9');
foreach my $entry (
  q{SELECT coord.saga_start('quick')}, q{SELECT coord.saga_define('new', ARRAY[coord.step('one', 'public.note')])},
  q{CALL coord.run_pending()}, q{CALL coord.saga_run('quick')}, qq{SELECT coord.saga_cancel($later)},
  qq{SELECT coord.saga_pause($later)}, qq{SELECT coord.saga_status($later)}, qq{SELECT coord.saga_wait($later, '1 ms')},
  q{SELECT coord.pause()}, q{SELECT coord.resume()}, q{CALL coord.drain('1 s')}, q{SELECT coord.start_worker()},
  q{SELECT coord.saga_activate('quick', 1)}, q{SELECT coord.saga_drop('other')},
  q{SELECT coord.grant_use('saga', 'quick', 'coord_user')}, q{SELECT coord.saga_find('quick', 'k')})
{
  my $error = error_of($dbh, $entry);
  ok( $error =~ /^ZC007 coord's library and SQL objects are of different versions\n/
      && $error =~ /^DETAIL: .*version 1\.0/m && $error =~ /^HINT: .*ALTER EXTENSION coord UPDATE/m,
    "$entry with another version") or diag($error);
}
# A worker that meets it: wake one up by a start that was prepared before.
$owner->do('ALTER FUNCTION coord_internal.version_0_9() RENAME TO version_1_0');
$dbh->begin_work;
$id = one($dbh, q{SELECT coord.saga_start('quick')});
$owner->do('ALTER FUNCTION coord_internal.version_1_0() RENAME TO version_0_9');
$position = log_size($node);
$dbh->commit;
ok(wait_for_log_line($node, qr/coord's library and SQL objects are of different versions/, $position),
  'a worker that meets another version says so in the log');
$owner->do('ALTER FUNCTION coord_internal.version_0_9() RENAME TO version_1_0');
eventually('and does its work when the versions agree again', $dbh, 'completed', q{SELECT coord.saga_status(?)}, $id);
is(one($dbh, q{SELECT count(*) FROM coord.saga_log WHERE saga_id = ?}, $id), 0, 'without having charged the saga');
$_->disconnect foreach $dbh, $owner;
$node->stop;

### A new library file under a running server, as a package puts it

# The server shall find the library in a directory of this test's, below the
# same path as the functions do.
my ($library) = grep { -e } map { "$_/coord.so" } split /:/, setting($node, 'dynamic_library_path');
ok(defined $library, 'the library is found');
my $place = "$dir/coord.so";
my $stage = $node->pg_version >= 18 ? '' : setting($node, 'extension_destdir');
if ($stage ne '')
{
  $place = $dir . substr($library, length $stage);
  make_path(dirname($place));
  $node->append_conf('postgresql.conf', "extension_destdir = '$dir'");
}
copy($library, $place) or die $!;
$node->append_conf('postgresql.conf', "dynamic_library_path = '" . dirname($place) . ":\$libdir'");
$node->start;
$dbh = session($node, 'postgres');
one($dbh, q{SELECT pg_advisory_lock(1)});
$id = one($dbh, q{SELECT coord.saga_start('gated', '{"gate": 1}')});
eventually('a step runs', $dbh, 1,
  q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord worker' AND wait_event = 'advisory'});
# Another file with the same contents, so that a process that loads it goes on.
copy($library, "$place.new") or die $!;
rename "$place.new", $place or die $!;
$position = log_size($node);
one($dbh, q{SELECT pg_advisory_unlock(1)});
eventually('the step and the saga end after the file was replaced', $dbh, 'completed', q{SELECT coord.saga_status(?)}, $id);
my $session = session($node, 'postgres');
$id = one($session, q{SELECT coord.saga_start('quick')});
eventually('new sessions start sagas', $session, 'completed', q{SELECT coord.saga_status(?)}, $id);
one($session, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'coord worker'});
$id = one($session, q{SELECT coord.saga_start('quick')});
eventually('new workers do them', $session, 'completed', q{SELECT coord.saga_status(?)}, $id);
unlike(log_since($node, $position), qr/PANIC|terminated by signal|could not load/, 'nothing crashed');
$_->disconnect foreach $dbh, $session;
$node->stop;

# A setting that needs no running server.
sub setting
{
  my ($node, $name) = @_;
  my ($value) = run_command([ 'postgres', '-D', $node->data_dir, '-C', $name ]);
  return $value;
}

done_testing();
