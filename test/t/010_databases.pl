# Statements about whole databases and about the extension work at once while
# coord's workers are there, idle or in the middle of a step.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# What "at once" is on a busy machine; without coord's help each of these waits
# five seconds and fails.
my $at_once = 4;

my $node = new_cluster('databases', 'coord.worker_idle_timeout' => '1h', 'coord.max_workers' => 4);
my $admin = session($node, 'postgres');
my $elsewhere = PostgreSQL::Test::Utils::tempdir;
$admin->do("CREATE TABLESPACE elsewhere LOCATION '$elsewhere'");

sub make_database
{
  my ($name) = @_;
  $admin->do("CREATE DATABASE $name");
  my $dbh = session($node, $name);
  install_sagas($dbh);
  return $dbh;
}

# A worker sits idle in the database, or sleeps in a step.
sub occupy
{
  my ($name, $how) = @_;
  my $dbh = session($node, $name);
  if ($how eq 'busy')
  {
    $dbh->do(q{SELECT coord.saga_start('napping') WHERE NOT EXISTS (
      SELECT FROM coord.sagas WHERE name = 'napping' AND status = 'running')});
    wait_until($admin, 1, q{SELECT count(*) } . WORKERS . q{ AND wait_event = 'PgSleep'}, $name);
  }
  else
  {
    my $id = one($dbh, q{SELECT coord.saga_start('quick')});
    wait_until($dbh, 'completed', q{SELECT coord.saga_status(?)}, $id);
    wait_until($admin, 'idle', q{SELECT string_agg(state, ',') } . WORKERS, $name);
  }
  $dbh->disconnect;
  return one($admin, q{SELECT min(pid) } . WORKERS, $name);
}

sub works_at_once
{
  my ($what, $name, $how, $sql) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  ok(occupy($name, $how), "$how worker in the database before $what");
  my $error;
  my $time = seconds { $error = error_of($admin, $sql) };
  is($error, 'no error', "$what with a worker that is $how");
  cmp_ok($time, '<', $at_once, "$what does not wait for a worker that is $how");
  return;
}

foreach my $how ('idle', 'busy')
{
  my $app = "app_$how";
  make_database($app)->disconnect;

  works_at_once('CREATE DATABASE .. TEMPLATE', $app, $how, "CREATE DATABASE copy_$how TEMPLATE $app");
  works_at_once('SET TABLESPACE', $app, $how, "ALTER DATABASE $app SET TABLESPACE elsewhere");
  works_at_once('SET TABLESPACE back', $app, $how, "ALTER DATABASE $app SET TABLESPACE pg_default");
  works_at_once('RENAME', $app, $how, "ALTER DATABASE $app RENAME TO moved_$how");

  # After all that the database acts as before.
  my $dbh = session($node, "moved_$how");
  my $id = one($dbh, q{SELECT coord.saga_start('quick')});
  eventually("a saga is done after it all, $how", $dbh, 'completed',
    q{SELECT coord.saga_status(?)}, $id);
  is(one($dbh, q{SELECT count(*) FROM coord.stuck}), 0, "and nothing is stuck, $how");
  if ($how eq 'busy')
  {
    wait_until($admin, 1, q{SELECT count(*) } . WORKERS . q{ AND wait_event = 'PgSleep'}, "moved_$how");
    is(one($dbh, q{SELECT string_agg(status || ' ' || step || ' ' || attempt, ', ' ORDER BY ordinal)
        FROM coord.saga_steps WHERE saga_id IN (SELECT id FROM coord.sagas WHERE name = 'napping')}),
      'completed before 1, running nap 1', 'the step that was broken off counts no attempt');
    is(one($dbh, q{SELECT count(*) FROM effect WHERE step = 'nap'}), 0,
      'and left nothing');
    is(one($dbh, q{SELECT count(*) FROM effect WHERE saga IN (SELECT id FROM coord.sagas WHERE name = 'napping')}),
      1, 'the step before it was done once');
  }
  $dbh->disconnect;

  works_at_once('DROP DATABASE', "moved_$how", $how, "DROP DATABASE moved_$how");
  is(one($admin, q{SELECT count(*) FROM pg_database WHERE datname = ?}, "moved_$how"), 0,
    "the database is gone, $how");
}

# A statement that fails gives the database back; one of somebody who may not
# do it does not touch the workers at all.
{
  my $dbh = make_database('kept');
  $admin->do('CREATE ROLE eve LOGIN CREATEDB');
  $dbh->do(q{SELECT pg_advisory_lock(1)});
  my $id = one($dbh, q{SELECT coord.saga_start('gated', '{"gate": 1}')});
  wait_until($admin, 1, q{SELECT count(*) } . WORKERS . q{ AND wait_event = 'advisory'}, 'kept');
  my $pid = one($admin, q{SELECT pid } . WORKERS, 'kept');

  my $eve = session($node, 'postgres', user => 'eve');
  like(error_of($eve, 'DROP DATABASE kept'), qr/^42501 must be owner/, 'DROP DATABASE by a stranger');
  like(error_of($eve, 'ALTER DATABASE kept RENAME TO mine'), qr/^42501 must be owner/, 'RENAME by a stranger');
  like(error_of($eve, 'CREATE DATABASE mine TEMPLATE kept'), qr/^42501 permission denied to copy/,
    'CREATE DATABASE .. TEMPLATE by a stranger');
  like(error_of($eve, 'ALTER DATABASE kept SET TABLESPACE elsewhere'), qr/^42501 must be owner/,
    'SET TABLESPACE by a stranger');
  is(one($admin, q{SELECT string_agg(pid || ' ' || wait_event, ',') } . WORKERS, 'kept'),
    "$pid advisory", 'the worker is still in its step');
  $eve->disconnect;

  like(error_of($admin, 'CREATE DATABASE postgres TEMPLATE kept'), qr/^42P04/, 'a statement that fails');
  eventually('the worker comes back after it', $admin, 1,
    q{SELECT count(*) } . WORKERS . q{ AND wait_event = 'advisory'}, 'kept');
  $admin->begin_work;
  like(error_of($admin, 'DROP DATABASE kept'), qr/^25001/, 'a statement in a transaction block');
  $admin->rollback;
  eventually('the worker comes back after that', $admin, 1,
    q{SELECT count(*) } . WORKERS . q{ AND wait_event = 'advisory'}, 'kept');
  $dbh->do(q{SELECT pg_advisory_unlock(1)});
  eventually('and does its saga', $dbh, 'completed', q{SELECT coord.saga_status(?)}, $id);
  is(one($dbh, q{SELECT string_agg(step, ',' ORDER BY id) FROM effect}), 'before,gate,after',
    'each step once');
  $dbh->disconnect;
}

# DROP EXTENSION and CREATE EXTENSION.
{
  my $dbh = session($node, 'kept');
  $dbh->do(q{SELECT coord.saga_start('quick', start_at => now() + '1 day')});
  $dbh->do(q{SELECT coord.saga_start('stopping')});
  wait_until($dbh, 1, q{SELECT count(*) FROM coord.stuck WHERE kind = 'saga'});
  my $time = seconds { is(error_of($dbh, 'DROP EXTENSION coord'), 'no error', 'DROP EXTENSION with open sagas') };
  cmp_ok($time, '<', $at_once, 'at once with an idle worker');
  is(one($dbh, q{SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'coord%'}), 0, 'nothing is left');

  $dbh->do('DROP TABLE effect');
  $dbh->do("DROP FUNCTION $_(jsonb)") foreach qw(note undo gate nap fail);
  my $position = log_size($node);
  install_sagas($dbh);
  my $id = one($dbh, q{SELECT coord.saga_start('quick')});
  eventually('sagas run after CREATE EXTENSION in the same session', $dbh, 'completed',
    q{SELECT coord.saga_status(?)}, $id);

  # With a step that runs: it is broken off and undone, nobody waits for it.
  $dbh->do(q{SELECT pg_advisory_lock(1)});
  $dbh->do(q{SELECT coord.saga_start('gated', '{"gate": 1}')});
  wait_until($admin, 1, q{SELECT count(*) } . WORKERS . q{ AND wait_event = 'advisory'}, 'kept');
  is(one($dbh, q{SELECT status FROM coord.saga_steps WHERE step = 'gate'}), 'running', 'a step that runs is shown so');
  my $dropper = session($node, 'kept');
  ok(eval { $dropper->do(q{SET lock_timeout = '5 s'}); $dropper->do('DROP EXTENSION coord'); 1 },
    'DROP EXTENSION while a step runs') or diag($@);
  is(one($dbh, q{SELECT count(*) FROM effect WHERE step = 'gate'}), 0, 'the step that ran is undone');
  $dbh->do(q{SELECT pg_advisory_unlock(1)});
  is(one($dbh, q{SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'coord%'}), 0, 'nothing is left again');
  $dropper->disconnect;
  $dbh->do('CREATE EXTENSION coord');
  $dbh->do(q{SELECT coord.saga_define('again', ARRAY[coord.step('one', 'public.note')])});
  $id = one($dbh, q{SELECT coord.saga_start('again')});
  eventually('and again sagas run', $dbh, 'completed', q{SELECT coord.saga_status(?)}, $id);
  unlike(log_since($node, $position), qr/ERROR|deadlock/, 'no error in the server log');
  $dbh->disconnect;
}

# Two databases at once, then more of them than workers.
{
  my @dbh = map { make_database("served_$_") } 1 .. 4;
  $_->do(q{SELECT pg_advisory_lock(1)}) foreach @dbh[0, 1];
  $_->do(q{SELECT coord.saga_start('gated', '{"gate": 1}')}) foreach @dbh[0, 1];
  eventually('steps of two databases run at the same time', $admin, 2, q{
    SELECT count(DISTINCT datname) FROM pg_stat_activity
    WHERE backend_type = 'coord worker' AND wait_event = 'advisory'});
  $_->do(q{SELECT pg_advisory_unlock(1)}) foreach @dbh[0, 1];

  $admin->do('ALTER SYSTEM SET coord.max_workers = 1');
  $node->reload;
  wait_until($dbh[0], 1, q{SELECT count(*) FROM pg_settings WHERE name = 'coord.max_workers' AND setting = '1'});
  my @id = map { one($_, q{SELECT max(coord.saga_start('quick')) FROM generate_series(1, 20)}) } @dbh;
  foreach my $i (0 .. $#dbh)
  {
    eventually("one worker serves database $i of four", $dbh[$i], 20,
      q{SELECT count(*) FROM coord.sagas WHERE name = 'quick' AND status = 'completed'});
  }

  # A database whose one step takes long is not what all others wait for.
  $admin->do('ALTER SYSTEM SET coord.max_workers = 2');
  $node->reload;
  wait_until($dbh[0], 1, q{SELECT count(*) FROM pg_settings WHERE name = 'coord.max_workers' AND setting = '2'});
  $dbh[0]->do(q{SELECT coord.saga_start('napping')});
  wait_until($admin, 1, q{SELECT count(*) } . WORKERS . q{ AND wait_event = 'PgSleep'}, 'served_1');
  foreach my $i (1 .. 3)
  {
    my $id = one($dbh[$i], q{SELECT coord.saga_start('quick')});
    eventually("database $i is served beside one with an hour-long step", $dbh[$i], 'completed',
      q{SELECT coord.saga_status(?)}, $id);
  }
  $_->disconnect foreach @dbh;
}

# A statement that is cancelled while it waits for a worker gives it back too.
{
  my $dbh = make_database('cancelled');
  $dbh->do(q{SELECT coord.saga_start('napping')});
  wait_until($admin, 1, q{SELECT count(*) } . WORKERS . q{ AND wait_event = 'PgSleep'}, 'cancelled');
  my $pid = one($admin, q{SELECT pid } . WORKERS, 'cancelled');
  kill STOP => $pid;
  $admin->do(q{SET statement_timeout = '300 ms'});
  like(error_of($admin, 'DROP DATABASE cancelled'), qr/^57014/, 'a cancelled DROP DATABASE');
  $admin->do(q{RESET statement_timeout});
  kill CONT => $pid;
  eventually('the worker comes back after it', $admin, 1,
    qq{SELECT count(*) } . WORKERS . qq{ AND wait_event = 'PgSleep' AND pid <> $pid}, 'cancelled');
  like(one($dbh, q{SELECT coord.saga_cancel(max(id), interrupt => true) FROM coord.sagas WHERE name = 'napping'}),
    qr/^(running|compensating|compensated)$/, 'its step is broken off');
  eventually('and its saga ends', $dbh, 'compensated',
    q{SELECT status FROM coord.sagas WHERE name = 'napping'});
  $dbh->disconnect;
}

# Databases that come and go use nothing up: coord knows at most 128 at a time.
foreach my $i (1 .. 130)
{
  $admin->do("CREATE DATABASE passing_$i STRATEGY file_copy");
  $admin->do("DROP DATABASE passing_$i");
}
{
  $admin->do('CREATE DATABASE late');
  my $dbh = session($node, 'late');
  install_sagas($dbh);
  my $id = one($dbh, q{SELECT coord.saga_start('quick')});
  eventually('a database is served after many others came and went', $dbh, 'completed',
    q{SELECT coord.saga_status(?)}, $id);
  $dbh->disconnect;
}
unlike(slurp_file($node->logfile), qr/no background worker could be started/,
  'and the server never ran out of workers');

$admin->disconnect;
$node->stop;
done_testing();
