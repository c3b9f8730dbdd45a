# A copy does not act: databases made from a template or from a dump, in the same
# cluster or another, wait for coord.resume(), and everything is in them.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('original', 'coord.worker_idle_timeout' => '1h', max_prepared_transactions => 5,
  max_worker_processes => 20);
my $admin = session($node, 'postgres');
$admin->do("CREATE ROLE $_ LOGIN") foreach qw(alice bob carol dora);
$admin->do('CREATE DATABASE app');
my $app = session($node, 'app');
install_sagas($app);
$app->do('GRANT coord_user TO alice, bob, carol');
$app->do('GRANT coord_reader TO dora');

# One finished, one undone, one suspended, one that waits, each of some role; all
# live ones are due as soon as somebody acts.
my %owner = (alice => 'quick', bob => 'failing', carol => 'stopping');
one($app, q{SELECT coord.grant_use('saga', 'quick', ?)}, $_) foreach qw(alice bob carol dora);
one($app, q{SELECT coord.grant_use('saga', ?, ?)}, $owner{$_}, $_) foreach qw(bob carol);
my %finished;
foreach my $role (sort keys %owner)
{
  my $dbh = session($node, 'app', user => $role);
  $finished{$role} = one($dbh, qq{SELECT coord.saga_start('$owner{$role}', '{"by": "$role"}',
    key => 'key of $role', labels => '{"of": "$role"}')});
  wait_until($dbh, 1, q{SELECT count(*) FROM coord.sagas WHERE id = ? AND status NOT IN ('running', 'compensating')},
    $finished{$role});
  $dbh->disconnect;
}
wait_until($app, 1, q{SELECT count(*) FROM coord.sagas WHERE status = 'suspended'});
one($app, q{SELECT coord.pause('to be copied')});
my %live;
foreach my $role (sort keys %owner)
{
  my $dbh = session($node, 'app', user => $role);
  $live{$role} = one($dbh, q{SELECT coord.saga_start('quick', '{"live": true}', key => ?)}, "live of $role");
  $dbh->disconnect;
}
# In the original it is only a pause.
my $contents = q{
  SELECT string_agg(t::text, E'\n' ORDER BY t::text) FROM (
    SELECT 'saga', id, name, version, status, direction, cause, key, input, output, error, owner, labels,
           correlation_id, created_at, finished_at FROM coord.sagas) t};
my $steps = q{SELECT string_agg(t::text, E'\n' ORDER BY t::text) FROM (SELECT * FROM coord.saga_steps) t};
my $log = q{SELECT string_agg(t::text, E'\n' ORDER BY t::text) FROM (SELECT * FROM coord.saga_log) t};
my $definitions = q{SELECT string_agg(t::text, E'\n' ORDER BY t::text) FROM (SELECT * FROM coord.saga_definitions) t};
my @everything = (sagas => $contents, steps => $steps, log => $log, definitions => $definitions);
my %before = map { $everything[$_ * 2] => one($app, $everything[$_ * 2 + 1]) } 0 .. 3;
cmp_ok(length $before{$_}, '>', 100, "there are $_ to be copied") foreach sort keys %before;

sub same_contents
{
  my ($dbh, $what) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  for (my $i = 0; $i < @everything; $i += 2)
  {
    is(one($dbh, $everything[$i + 1]), $before{ $everything[$i] }, "$everything[$i] are the same in $what");
  }
  return;
}

# Not acting: pending work stays, a key finds its saga, and coord.stuck says how
# to go on.  Then what it says is done.
sub copy_is_held
{
  my ($node, $name, $position) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  my $dbh = session($node, $name);
  my $oid = one($dbh, q{SELECT oid FROM pg_database WHERE datname = current_database()});

  one($dbh, q{SELECT coord.saga_start('quick', key => 'wakes a worker')});
  ok(wait_for_log_line($node, qr/WARNING: .*this database \(oid $oid\) is a copy and nothing will run in it/, $position),
    "WARNING in the server log about $name");
  my $warning;
  local $SIG{__WARN__} = sub { $warning = shift };
  $dbh->{PrintWarn} = 1;
  $dbh->do('SET client_min_messages = warning');
  is(one($dbh, 'CALL coord.run_pending()'), 0, "run_pending does nothing in $name");
  like($warning, qr/does not run anything in this database/, 'and says so');
  is(one($dbh, q{SELECT count(*) FROM effect WHERE input ->> 'live' IS NOT NULL}), 0, "nothing was done in $name");
  is(one($dbh, q{SELECT count(*) FROM coord.stuck WHERE kind = 'engine' AND waits_for ~ 'copy'}), 1,
    "coord.stuck says that $name is a copy");
  return $dbh;
}

sub repair
{
  my ($dbh, $what) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  my $repair = one($dbh, q{SELECT repair FROM coord.stuck WHERE kind = 'engine' AND waits_for ~ 'copy'});
  is(error_of($dbh, $repair), 'no error', "the repair of $what: $repair");
  is(one($dbh, q{SELECT count(*) FROM coord.stuck WHERE kind = 'engine'}), 0, "$what is no copy any more");
  return;
}

### A template

{
  my $position = log_size($node);
  $app->disconnect;
  $admin->do('CREATE DATABASE copy TEMPLATE app');
  $app = session($node, 'app');
  my $copy = session($node, 'copy');
  same_contents($copy, 'a copy by template');
  $copy->disconnect;

  # The original goes on.
  one($app, q{SELECT coord.resume()});
  eventually("the original does the saga of $_", $app, 'completed', q{SELECT coord.saga_status(?)}, $live{$_})
    foreach sort keys %live;
  is(one($app, q{SELECT string_agg(role || ' ' || step, ',' ORDER BY role, id) FROM effect WHERE input ->> 'live' IS NOT NULL}),
    'alice one,alice two,bob one,bob two,carol one,carol two', 'in the original each step is done once');
  is(one($app, q{SELECT count(*) FROM coord.stuck WHERE kind = 'engine'}), 0, 'the original is no copy');

  $copy = copy_is_held($node, 'copy', $position);
  repair($copy, 'a copy by template');
  eventually("the copy does the saga of $_ after coord.resume()", $copy, 'completed', q{SELECT coord.saga_status(?)},
    $live{$_}) foreach sort keys %live;
  is(one($copy, q{SELECT string_agg(role || ' ' || step, ',' ORDER BY role, id) FROM effect WHERE input ->> 'live' IS NOT NULL}),
    'alice one,alice two,bob one,bob two,carol one,carol two', 'in the copy each step is done once');
  $copy->disconnect;
}

### Dumps

# The original's contents again, with live ones.
one($app, q{SELECT coord.pause('to be dumped')});
foreach my $role (sort keys %owner)
{
  my $dbh = session($node, 'app', user => $role);
  $live{$role} = one($dbh, q{SELECT coord.saga_start('quick', '{"live": true}', key => ?)}, "second of $role");
  $dbh->disconnect;
}
$app->do(q{DELETE FROM effect WHERE input ->> 'live' IS NOT NULL});
%before = map { $everything[$_ * 2] => one($app, $everything[$_ * 2 + 1]) } 0 .. 3;
my $dump = PostgreSQL::Test::Utils::tempdir . '/app.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('app') ], 'pg_dump');

{
  my $position = log_size($node);
  $admin->do('CREATE DATABASE restored');
  $node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $dump ],
    'pg_restore into the same cluster');
  my $restored = session($node, 'restored');
  same_contents($restored, 'a restored database');
  cmp_ok(one($restored, q{SELECT count(*) FROM pg_inherits WHERE inhparent::regclass::text ~ 'coord_internal'}),
    '>=', 2, 'partitions are restored');
  $restored->disconnect;
  $restored = copy_is_held($node, 'restored', $position);

  my $alice = session($node, 'restored', user => 'alice');
  is(one($alice, q{SELECT coord.saga_start('quick', '{"live": true}', key => 'second of alice')}), $live{alice},
    'a key of a live saga finds it in a restored database');
  is(one($alice, q{SELECT coord.saga_start('quick', '{"by": "alice"}', key => 'key of alice')}), $finished{alice},
    'a key of a finished saga finds it in a restored database');
  like(error_of($alice, q{SELECT coord.saga_start('quick', '{"by": "mallory"}', key => 'key of alice')}),
    qr/^ZC005/, 'and not with another input');
  cmp_ok(one($alice, q{SELECT coord.saga_start('quick', key => 'new')}), '>', $live{carol},
    'a new saga has a new id');
  is(one($alice, q{SELECT string_agg(DISTINCT name, ',') FROM coord.sagas}), 'quick', 'alice sees what she saw');
  $alice->disconnect;
  repair($restored, 'a restored database');
  eventually("the restored database does the saga of $_ after coord.resume()", $restored, 'completed',
    q{SELECT coord.saga_status(?)}, $live{$_}) foreach sort keys %live;
  is(one($restored, q{SELECT string_agg(role || ' ' || step, ',' ORDER BY role, id) FROM effect WHERE input ->> 'live' IS NOT NULL}),
    'alice one,alice two,bob one,bob two,carol one,carol two', 'each step once, as the role that started it');
  one($restored, q{SELECT coord.saga_cancel(?)}, $finished{carol});
  eventually('a suspended saga can be cancelled there', $restored, 'compensated', q{SELECT coord.saga_status(?)},
    $finished{carol});
  $restored->disconnect;
}

# A worker came between CREATE EXTENSION and the data, and is still there.
{
  $admin->do('CREATE DATABASE slowly');
  my @restore = ('pg_restore', '--exit-on-error', '-d', $node->connstr('slowly'));
  my ($schema) = run_command([ 'pg_restore', '-l', '--section=pre-data', $dump ]);
  append_to_file("$dump.extension", join '', map { "$_\n" } grep { /EXTENSION - coord / } split /\n/, $schema);
  append_to_file("$dump.schema", join '', map { "$_\n" } grep { !/EXTENSION - coord / } split /\n/, $schema);
  $node->command_ok([ @restore, '-L', "$dump.extension", $dump ], 'pg_restore of the extension');
  wait_until($admin, 'idle', q{SELECT string_agg(state, ',') } . WORKERS, 'slowly');
  $node->command_ok([ @restore, '-L', "$dump.schema", $dump ], 'pg_restore of the schema');

  # In any order, as a parallel restore has it: what says that this is a copy
  # comes last.
  my ($list) = run_command([ 'pg_restore', '-l', '--section=data', $dump ]);
  my ($last, $first) = (join("\n", grep { /TABLE DATA coord_internal (identity|engine_pause) / } split /\n/, $list),
    join("\n", grep { !/TABLE DATA coord_internal (identity|engine_pause) / } split /\n/, $list));
  append_to_file("$dump.first", "$first\n");
  append_to_file("$dump.last", "$last\n");
  $node->command_ok([ @restore, '-L', "$dump.first", $dump ], 'pg_restore of sagas before all else');
  my $slowly = session($node, 'slowly');
  $slowly->begin_work;
  my $own = one($slowly, q{SELECT coord.saga_start('quick', key => 'own')});
  $slowly->do(q{PREPARE TRANSACTION 'wake'});
  $slowly->commit;
  $slowly->do(q{COMMIT PREPARED 'wake'});
  eventually('a saga that was started there is done', $slowly, 'completed', q{SELECT coord.saga_status(?)}, $own);
  is(one($slowly, q{SELECT string_agg(status, ',') FROM coord.sagas WHERE id = ANY (?)}, [ values %live ]),
    'running,running,running', 'those that were copied are not');
  $node->command_ok([ @restore, '-L', "$dump.last", $dump ], 'pg_restore of the rest');

  # COMMIT PREPARED makes the worker look at the tables from the start.
  $slowly->begin_work;
  my $woken = one($slowly, q{SELECT coord.saga_start('quick', key => 'wakes a worker')});
  $slowly->do(q{PREPARE TRANSACTION 'wake'});
  $slowly->commit;
  $slowly->do(q{COMMIT PREPARED 'wake'});
  eventually('a worker that was there before the data goes', $admin, 0, q{SELECT count(*) } . WORKERS, 'slowly');
  is(one($slowly, q{SELECT string_agg(coord.saga_status(id), ',') FROM unnest(?::bigint[]) AS id},
      [ $woken, values %live ]), 'running,running,running,running', 'and did nothing');
  is(one($slowly, q{SELECT count(*) FROM effect WHERE input ->> 'live' IS NOT NULL}), 0, 'no effect');
  is(one($slowly, q{SELECT count(*) FROM coord.stuck WHERE kind = 'engine' AND waits_for ~ 'copy'}), 1,
    'coord.stuck says that it is a copy');
  $node->command_ok([ @restore, '--section=post-data', $dump ], 'pg_restore of the rest');
  repair($slowly, 'a database restored in sections');
  eventually('then all is done there', $slowly, 0, q{SELECT count(*) FROM coord.sagas WHERE status = 'running'});
  $slowly->disconnect;
}

### Another cluster, where each of these oids is another role's, and carol is
### missing

{
  my $other = new_cluster('other');
  my $admin = session($other, 'postgres');
  my %oid = map { $_ => one($app, q{SELECT oid FROM pg_roles WHERE rolname = ?}, $_) } qw(alice bob carol dora);
  # Oids are counted from the same start: bob gets alice's, and mallory carol's.
  $admin->do('CREATE ROLE bob LOGIN');
  $admin->do('CREATE ROLE alice LOGIN');
  $admin->do('CREATE ROLE mallory LOGIN');
  $admin->do('CREATE ROLE dora LOGIN');
  is(one($admin, q{SELECT string_agg(rolname, ',' ORDER BY oid) FROM pg_roles WHERE oid IN (?, ?, ?)},
      @oid{qw(alice bob carol)}), 'bob,alice,mallory', 'oids are other roles\' in the other cluster')
    or diag(one($admin, q{SELECT string_agg(oid || ' ' || rolname, ',') FROM pg_roles WHERE oid > 16383}),
      ' ', join ',', %oid);

  my $position = log_size($other);
  $admin->do('CREATE DATABASE app');
  # carol is missing: her grants and ownerships are left out as in any such restore.
  $other->command_ok([ 'pg_restore', '--exit-on-error', '--no-owner', '--no-acl', '-d', $other->connstr('app'), $dump ],
    'pg_restore into another cluster');
  my $copy = session($other, 'app');
  $copy->do('GRANT SELECT, INSERT ON effect TO PUBLIC');
  $copy->do('GRANT coord_user TO alice, bob, mallory');
  $copy->do('GRANT coord_reader TO dora');
  is(one($copy, q{SELECT string_agg(name || ' ' || status, ',' ORDER BY id) FROM coord.sagas}),
    one($app, q{SELECT string_agg(name || ' ' || status, ',' ORDER BY id) FROM coord.sagas}), 'all sagas are there');
  $copy->disconnect;
  $copy = copy_is_held($other, 'app', $position);
  my $mallory = session($other, 'app', user => 'mallory');
  is(one($mallory, q{SELECT count(*) FROM coord.sagas}), 0, 'before resume the role with carol\'s oid sees nothing of hers');
  like(error_of($mallory, "SELECT coord.saga_cancel($live{carol})"), qr/^42704/, 'nor may it cancel it');
  $mallory->disconnect;
  my $bob = session($other, 'app', user => 'bob');
  like(error_of($bob, q{SELECT coord.saga_start('quick')}), qr/^42704/, 'nor may the role of the same name, yet');
  $bob->disconnect;
  my $early = one($copy, q{SELECT coord.saga_start('quick', '{"early": true}')});
  repair($copy, 'a copy in another cluster');
  eventually('a saga that was started there before resume is done', $copy, 'completed', q{SELECT coord.saga_status(?)},
    $early);
  is(one($copy, q{SELECT string_agg(DISTINCT role, ',') FROM effect WHERE saga = ?}, $early),
    one($copy, 'SELECT current_user'), 'as the role that started it');
  is(one($copy, q{SELECT owner FROM coord.saga_definitions WHERE name = 'quick'}),
    one($app, q{SELECT owner FROM coord.saga_definitions WHERE name = 'quick'}), 'definitions belong to whom they did');

  eventually("$_\'s saga is done there", $copy, 'completed', q{SELECT coord.saga_status(?)}, $live{$_})
    foreach qw(alice bob);
  eventually('that of carol, whom nobody knows here, is suspended', $copy, 'suspended',
    q{SELECT coord.saga_status(?)}, $live{carol});
  is(one($copy, q{SELECT string_agg(saga || ' ' || role || ' ' || step, ',' ORDER BY role, id)
      FROM effect WHERE input ->> 'live' IS NOT NULL}),
    "$live{alice} alice one,$live{alice} alice two,$live{bob} bob one,$live{bob} bob two",
    'steps ran as the roles of the same names, and nothing as somebody else');
  is(one($copy, q{SELECT string_agg(id || ' ' || owner, ',' ORDER BY id) FROM coord.sagas
      WHERE owner IN ('alice', 'bob', 'mallory') AND name IN ('quick', 'failing')
        AND id IN (?, ?, ?, ?)}, @live{qw(alice bob)}, @finished{qw(alice bob)}),
    join(',', map { "$_->[0] $_->[1]" } sort { $a->[0] <=> $b->[0] } map { [ $live{$_}, $_ ], [ $finished{$_}, $_ ] } qw(alice bob)),
    'owners are found by name, of finished sagas as well');
  is(one($copy, q{SELECT count(*) FROM coord.stuck WHERE kind = 'saga' AND id = ?}, $live{carol}), 1,
    'coord.stuck has the one without an owner');

  $mallory = session($other, 'app', user => 'mallory');
  is(one($mallory, q{SELECT count(*) FROM coord.sagas}), 0, 'the role with carol\'s oid sees nothing of hers');
  $mallory->disconnect;
  my $dora = session($other, 'app', user => 'dora');
  cmp_ok(one($dora, q{SELECT count(*) FROM coord.sagas WHERE name = 'quick'}), '>', 0, 'grants are found by name');
  is(one($dora, q{SELECT count(*) FROM coord.sagas WHERE name <> 'quick'}), 0, 'and are what they were');
  $dora->disconnect;
  my $alice = session($other, 'app', user => 'alice');
  is(one($alice, q{SELECT coord.saga_start('quick', '{"by": "alice"}', key => 'key of alice')}), $finished{alice},
    'a key of a finished saga finds it');
  $alice->disconnect;
  $_->disconnect foreach $copy, $admin;
  $other->stop;
}

$_->disconnect foreach $app, $admin;
$node->stop;
done_testing();
