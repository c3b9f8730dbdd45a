# The library loads at server start and the extension can be created, dropped
# and created again.

use strict;
use warnings FATAL => 'all';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('smoke');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'coord'");
$node->start;

$node->safe_psql('postgres', 'CREATE EXTENSION coord');
is($node->safe_psql('postgres', q{SELECT extversion FROM pg_extension WHERE extname = 'coord'}),
  '1.0', 'CREATE EXTENSION');
is($node->safe_psql('postgres',
    q{SELECT string_agg(nspname, ',' ORDER BY nspname) FROM pg_namespace WHERE nspname ~ '^coord'}),
  'coord,coord_internal', 'its schemas');
$node->safe_psql('postgres', 'DROP EXTENSION coord');
$node->safe_psql('postgres', 'CREATE EXTENSION coord');

$node->restart;
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_extension WHERE extname = 'coord'}),
  '1', 'still there after a restart');
unlike(slurp_file($node->logfile),
  qr/PANIC|FATAL: (?! terminating (?:background worker|connection))/, 'nothing bad in the server log');

$node->stop;
done_testing();
