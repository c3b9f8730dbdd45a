# Handlers in workers: woken by publishers, poisoned by events that raise, hang or crash
# the server, kept from nothing by a consumer that sleeps; deferred work, timers.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTwophase qw(reconnect);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('main', restart_after_crash => 'on', max_prepared_transactions => 5,
  'coord.handler_timeout' => '1s', 'coord.worker_idle_timeout' => '200ms');
my $dbh = session($node, 'postgres');
$dbh->do($_) foreach (
  'CREATE EXTENSION coord',
  'CREATE TABLE done (n serial, subscription text, pos bigint, type text, key text)',
  'CREATE TABLE checked (pos bigint PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)',
  q{CREATE FUNCTION crash() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS
    $$ BEGIN PERFORM set_config('coord.debug_point', 'crash:event_after_handler', true); END $$},
  q{CREATE FUNCTION handle(e coord.event) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
      INSERT INTO done (subscription, pos, type, key) VALUES ('each', e.pos, e.type, e.key);
      IF e.type = 'p.hang' THEN PERFORM pg_sleep(60);
      ELSIF e.type = 'p.swallow' THEN
        BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END;
      ELSIF e.type = 'p.raise' THEN RAISE EXCEPTION 'no';
      ELSIF e.type = 'p.deferred' THEN INSERT INTO checked VALUES (1);
      ELSIF e.type = 'p.crash' THEN PERFORM crash();
      ELSIF e.type = 'p.leave' THEN
        EXECUTE 'PREPARE kept AS SELECT 1'; PERFORM pg_advisory_lock(77); EXECUTE 'CREATE TEMP TABLE left_over ()';
      END IF;
    END $$},
  q{SELECT coord.subscribe('each', '{p.*}', 'handle', max_attempts => 3)});

sub publish { my ($type, $key) = @_; return one($dbh, q{SELECT coord.publish(?, '{}', ?)}, $type, $key) }
sub handled { my ($name, $expected) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  eventually($name, $dbh, $expected, q{SELECT coalesce(string_agg(type, ' ' ORDER BY n), '') FROM done});
  $dbh->do('TRUNCATE done');
  return }
my $parked = q{SELECT coalesce(string_agg(type || ':' || attempts || ':' || sqlstate, ' ' ORDER BY pos), '') FROM coord.parked};

### Woken

publish('p.1');
handled('a publisher rings', 'p.1');
eventually('the worker goes home', $dbh, 0, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord worker'});
publish('p.2');
handled('a publisher rings for one who is not there', 'p.2');
$dbh->do('BEGIN');
publish('p.3');
$dbh->do(q{PREPARE TRANSACTION 'p'});
publish('p.4');
$dbh->do(q{COMMIT PREPARED 'p'});
handled('so does COMMIT PREPARED', 'p.3 p.4');
$dbh->do('BEGIN');
publish('p.5');
my $other = session($node, 'postgres');
one($other, q{SELECT coord.publish('p.6')});
$dbh->do('ROLLBACK');
handled('and a rollback that others waited for', 'p.6');
$other->disconnect;

### Poison

# Retries come as the clock is set.
sub later
{
  my ($minutes) = @_;
  $dbh->do("ALTER SYSTEM SET coord.test_now = '2040-01-01 00:$minutes:00+00'");
  $node->reload;
  wait_until($dbh, "2040-01-01 00:$minutes:00+00", 'SHOW coord.test_now');
  one($dbh, 'SELECT coord_internal.ring()');
  return;
}
publish('p.hang', 'x');
eventually('one that hangs is put aside', $dbh, 1, q{SELECT waiting FROM coord.subscriptions WHERE name = 'each'});
publish($_->[0], $_->[1]) foreach (['p.a', 'k'], ['p.raise', 'k'], ['p.hang', 'l'], ['p.swallow', 'm'], ['p.deferred', 'n'], ['p.deferred', 'o'],
  ['p.leave', 'q'], ['p.b', 'k'], ['p.c', 'l'], ['p.d', 'r']);
eventually('what is well is done', $dbh, 'p.a p.d p.deferred p.leave', q{SELECT string_agg(type, ' ' ORDER BY type) FROM done});
foreach my $minutes ('10', '20', '30', '40')
{
  later($minutes);
  wait_until($dbh, 0, q{SELECT count(*) FROM coord_internal.subscription_event WHERE due_at <= coord_internal.now()});
}
is(one($dbh, $parked), 'p.hang:3:57014 p.raise:3:P0001 p.hang:3:57014 p.swallow:3:57014 p.deferred:3:23505',
  'what raises, hangs, swallows its cancel, or fails when it is checked is parked after its attempts');
is(one($dbh, q{SELECT string_agg(type, ' ' ORDER BY type) FROM done}), 'p.a p.d p.deferred p.leave', 'what it did is undone');
is(one($dbh, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77}), 0, 'what a handler leaves in the session is cleared away');
one($dbh, q{SELECT coord.parked_drop('each', pos) FROM coord.parked});
eventually('what waited behind is done', $dbh, 'p.a p.b p.c p.d p.deferred p.leave', q{SELECT string_agg(type, ' ' ORDER BY type) FROM done});
$dbh->do('TRUNCATE done');
$dbh->do('ALTER SYSTEM RESET coord.test_now');
$node->reload;

# It crashes the server, each time.
$dbh->do('BEGIN');
publish("p.before$_") foreach (1 .. 3);
publish('p.crash', 'k');
publish("p.after$_", 'k') foreach (1 .. 3);
publish("p.after$_") foreach (4 .. 6);
$dbh->do('COMMIT');
$dbh->disconnect;
my $patience = 0;
do { $dbh = reconnect($node); }
  until ($patience++ > 200 || (wait_until_alive() // '') eq 'p.crash:3:57P02');

# The last value of a query in a server that may crash meanwhile.
sub wait_until_alive
{
  my $value = eval { one($dbh, $parked) };
  select undef, undef, undef, 0.2 if ($value // '') ne 'p.crash:3:57P02';
  eval { $dbh->disconnect } if ($value // '') ne 'p.crash:3:57P02';
  return $value;
}
is(one($dbh, $parked), 'p.crash:3:57P02', 'what crashes the server is parked after its attempts');
eventually('its neighbours are handled', $dbh, 'p.after4 p.after5 p.after6 p.before1 p.before2 p.before3',
  q{SELECT string_agg(type, ' ' ORDER BY type) FROM done});
my $crashes = () = slurp_file($node->logfile) =~ /terminated by signal/g;
cmp_ok($crashes, '<=', 5, "$crashes crashes");
one($dbh, q{SELECT coord.parked_drop('each', pos) FROM coord.parked});
eventually('what waited is handled', $dbh, 'p.after1 p.after2 p.after3 p.after4 p.after5 p.after6 p.before1 p.before2 p.before3',
  q{SELECT string_agg(type, ' ' ORDER BY type) FROM done});
publish('p.well');
eventually('the server is well', $dbh, 1, q{SELECT count(*) FROM done WHERE type = 'p.well'});
$dbh->do('TRUNCATE done');

### A handler that sleeps keeps nobody else

$dbh->do('ALTER SYSTEM SET coord.handler_timeout = 0');
$node->reload;
wait_until($dbh, '0', 'SHOW coord.handler_timeout');
$dbh->do(q{CREATE FUNCTION slow(e jsonb) RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_xact_lock(99) $$});
my $gate = session($node, 'postgres');
one($gate, 'SELECT pg_advisory_lock(99)');
$dbh->do(q{SELECT coord.subscribe('slow', '{p.*}', 'slow')});
publish('p.1');
eventually('one handler waits', $dbh, 1, q{SELECT count(*) FROM pg_locks WHERE objid = 99 AND NOT granted});
publish('p.2');
handled('the other one does not', 'p.1 p.2');
is(one($dbh, q{SELECT position < head FROM coord.subscriptions WHERE name = 'slow'}), 1, 'it is seen who lags');
one($gate, 'SELECT pg_advisory_unlock(99)');
eventually('it goes on', $dbh, 1, q{SELECT count(*) FROM coord.subscriptions WHERE name = 'slow' AND lag_events = 0});

### Restart

$dbh->do(q{SELECT coord.pause()});
publish('p.9');
$dbh->disconnect;
$node->restart;
$dbh = session($node, 'postgres');
is(one($dbh, 'SELECT count(*) FROM done'), 0, 'nothing while the engine is paused');
one($dbh, q{SELECT coord.resume()});
handled('then what was published before the restart', 'p.9');
$node->stop;
done_testing();
