# Long queues, with much coming and going: 10,000 waits for a few locks, leases and a
# semaphore by a hundred sessions at a time, of which some give up, are cancelled or
# terminated, while they stand in the queue and while it moves.  Then: nobody had what
# somebody else had, each grant is accounted for, the queue was left in its order, and
# nothing remains of it all.
#
# COORD_SHORT=1 makes it 900 waits by thirty sessions.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordLocks;
use List::Util qw(shuffle sum0);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $short = $ENV{COORD_SHORT};
my $sessions = $short ? 30 : 100;
my $rounds = $short ? 30 : 100;

# Of those who wait in a round: gives up, is cancelled, terminated while nothing moves;
# is cancelled, terminated while the queue moves.
my %fates = map { $_->[0] => int($_->[1] * $sessions) }
  [ timeout => 0.1 ], [ cancel => 0.1 ], [ terminate => 0.04 ], [ 'cancel late' => 0.1 ], [ 'terminate late' => 0.04 ];
srand(4711);

my $node = new_cluster('churn', max_connections => $sessions + 20, autovacuum => 'off',
  'coord.worker_idle_timeout' => '1s');
my $admin = session($node, 'postgres');
$admin->do(q{CREATE DATABASE app});
my $app = session($node, 'app');
$app->do($_) foreach (
  q{CREATE EXTENSION coord},
  # What was read before and written after: an update is lost where two are at it.
  q{CREATE TABLE counter (mode text PRIMARY KEY, value int NOT NULL DEFAULT 0)},
  q{INSERT INTO counter VALUES ('exclusive'), ('lease')},
  # Who had what, from when to when by a clock that belongs to no transaction.
  q{CREATE SEQUENCE tick},
  q{CREATE TABLE ledger (id int, name text, mode text, permits int, token bigint, since bigint, until bigint)},
  q{CREATE FUNCTION use_it(id int, name text, mode text, permits int, token bigint) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
      since bigint := nextval('tick');
      read int;
    BEGIN
      SELECT value INTO read FROM counter c WHERE c.mode = use_it.mode;
      UPDATE counter c SET value = read + 1 WHERE c.mode = use_it.mode;
      INSERT INTO ledger VALUES (id, name, mode, permits, token, since, nextval('tick'));
    END $$},
  q{CREATE FUNCTION use_lock(id int, name text, mode text, timeout interval) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
      token bigint := coord.lock(name, mode, timeout => timeout);
    BEGIN
      PERFORM use_it(id, name, mode, 1, token);
      RETURN token;
    END $$},
  # The grant counts from the first commit; what was noted of its use counts only with the release.
  q{CREATE PROCEDURE use_lease(id int, name text, permits int, timeout interval, INOUT token bigint DEFAULT NULL) LANGUAGE plpgsql AS $$
    DECLARE
      semaphore boolean := name LIKE 'semaphore%';
    BEGIN
      token := (SELECT l.token FROM coord.lease_acquire(name, id::text, '10 min', timeout, permits) l);
      COMMIT;
      IF token IS NULL THEN RETURN; END IF;
      IF NOT semaphore THEN PERFORM coord.fence_check(name, token); END IF;
      PERFORM use_it(id, name, CASE WHEN semaphore THEN 'semaphore' ELSE 'lease' END, permits, token);
      IF NOT coord.lease_release(name, token) THEN RAISE 'a lease was lost'; END IF;
    END $$});
one($app, q{SELECT coord.semaphore_create('semaphore', 3)});

my @session = map { session($node, 'app') } 1 .. $sessions;
my $holder = session($node, 'app');

# What is wanted in a round: a kind, and a name that comes again.
sub wanted
{
  my ($round) = @_;
  my $kind = (qw(lock modes lease semaphore))[ $round % 4 ];
  return ($kind, $kind eq 'semaphore' ? $kind : "$kind " . $round % 3);
}

# What one of them says, who gives up after $timeout.
sub statement
{
  my ($kind, $name, $id, $timeout) = @_;
  if ($kind eq 'lock' || $kind eq 'modes')
  {
    my $mode = $kind eq 'lock' ? 'exclusive'
      : (qw(exclusive share share intent_share intent_exclusive share_intent_exclusive))[ int rand 6 ];
    return "SELECT use_lock($id, '$name', '$mode', '$timeout')";
  }
  my $permits = $kind eq 'lease' ? 1 : 1 + int rand 3;
  return "CALL use_lease($id, '$name', $permits, '$timeout')";
}

# The memory that the server's processes share and that was got after its start.
sub shared_memory
{
  my %size;
  my $data = $node->data_dir;
  foreach my $maps (map { (readlink("$_/cwd") // '') eq $data ? "$_/maps" : () } glob '/proc/[0-9]*')
  {
    open(my $file, '<', $maps) or next;
    while (<$file>)
    {
      $size{$1} //= -s $1 // 0 if m{(/dev/shm/PostgreSQL\.\S+)};
    }
  }
  return sum0(values %size);
}

# A session has ended, with what it had open.
sub ended
{
  my ($pid) = @_;
  return wait_until($app, 0, q{SELECT count(*) FROM pg_stat_activity WHERE pid = ?}, $pid);
}

my $id = 0;
my %said;          # what came of each: a token, or "SQLSTATE message"
my %fate;
my (@unexpected, @disorder, @queues);
my $begin = time;
my $memory;

foreach my $round (0 .. $rounds - 1)
{
  my ($kind, $name) = wanted($round);
  my $token;
  if ($kind eq 'lock' || $kind eq 'modes') { one($holder, q{SELECT coord.lock(?, scope => 'session')}, $name) }
  else { $token = acquire($holder, $name, 'holder', ttl => '10 min', permits => $kind eq 'semaphore' ? 3 : 1) }

  # All of them queue.
  my @fates = map { my $fate = $_; ($fate) x $fates{$fate} } sort keys %fates;
  @fates = shuffle(@fates, ('granted') x ($sessions - @fates));
  my (%of, %place);
  foreach my $i (0 .. $#session)
  {
    $fate{ ++$id } = $fates[$i];
    push @{ $of{ $fates[$i] } }, $id;
    $place{$id} = { number => $i, pid => $session[$i]->{pg_pid},
      later => later($session[$i], statement($kind, $name, $id, $fates[$i] eq 'timeout' ? '20 ms' : '10 min')) };
  }
  my $get = sub { my ($of) = @_; $said{$of} = outcome($place{$of}->{later}) // 'not granted'; };
  my $renew = sub {
    my ($of) = @_;
    my $place = $place{$of};
    eval { $session[ $place->{number} ]->disconnect };
    $session[ $place->{number} ] = session($node, 'app');
  };
  $get->($_) foreach @{ $of{timeout} };
  my $waiting = $sessions - $fates{timeout};
  my $queue = wait_until($app, $waiting, q{SELECT count(*) FROM coord.lock_waiters WHERE name = ?}, $name);

  # Some leave it.
  one($app, q{SELECT pg_cancel_backend(?)}, $place{$_}->{pid}) foreach @{ $of{cancel} };
  one($app, q{SELECT pg_terminate_backend(?)}, $place{$_}->{pid}) foreach @{ $of{terminate} };
  $get->($_) foreach @{ $of{cancel} }, @{ $of{terminate} };
  $renew->($_) foreach @{ $of{terminate} };
  my $rest = wait_until($app, $waiting - $fates{cancel} - $fates{terminate}, q{SELECT count(*) FROM coord.lock_waiters WHERE name = ?}, $name);
  my $counted = one($app, $token ? q{SELECT max(waiters) FROM coord.leases WHERE name = ?}
    : q{SELECT waiters FROM coord.locks WHERE name = ?}, $name);
  push @queues, "round $round: $queue, $rest, $counted"
    if $queue != $waiting || $rest != $waiting - $fates{cancel} - $fates{terminate} || $counted != $rest;
  my %number = map { $_->{pid} => $_->{number} } values %place;
  my %position;
  if ($kind ne 'modes')
  {
    # The server says exactly who stands before whom.
    my $rows = $app->selectall_arrayref(q{SELECT pid, cardinality(blocked_by) FROM coord.lock_waiters WHERE name = ?}, undef, $name);
    $position{ $number{ $_->[0] } } = $_->[1] foreach @$rows;
  }

  # The queue moves, and some are torn out of it.
  $token ? release($holder, $name, $token) : one($holder, q{SELECT coord.unlock(?)}, $name);
  foreach my $victim (shuffle @{ $of{'cancel late'} }, @{ $of{'terminate late'} })
  {
    one($app, $fate{$victim} eq 'cancel late' ? q{SELECT pg_cancel_backend(?)} : q{SELECT pg_terminate_backend(?)},
      $place{$victim}->{pid});
    $get->($victim);
    if ($fate{$victim} eq 'terminate late')
    {
      ended($place{$victim}->{pid});
      $renew->($victim);
    }
    # Who was granted a lease and could not use it.
    one($app, q{SELECT coord.lease_release(name, token) FROM coord.leases WHERE name = ? AND owner = ?}, $name, $victim) if $token;
  }
  $get->($_) foreach @{ $of{granted} };

  # In order of arrival.
  if (%position)
  {
    my @granted = sort { $position{ $place{$a}->{number} } <=> $position{ $place{$b}->{number} } } @{ $of{granted} };
    foreach my $i (1 .. $#granted)
    {
      push @disorder, "round $round, $name: $said{$granted[$i - 1]} before $said{$granted[$i]}"
        unless $said{ $granted[ $i - 1 ] } < $said{ $granted[$i] };
    }
  }
  $memory = shared_memory() if $round == int($rounds / 5) - 1;
}
my $memory_after = shared_memory();
note sprintf '%d waits in %.1f s; shared memory %d, then %d', $id, time - $begin, $memory, $memory_after;

### What came of it

is($id, $short ? 900 : 10_000, 'so many have waited');
is(join("\n", @queues), '', 'coord.lock_waiters, coord.locks and coord.leases had all who waited, and only those');

# By what was to happen to them.
my $terminated = qr/terminating connection due to administrator command/;
my %expected = (
  granted => qr/^\d+$/, timeout => qr/^(55P03 .*was not granted in time|not granted$)/, cancel => qr/^57014/,
  terminate => $terminated, 'cancel late' => qr/^(\d+$|57014)/, 'terminate late' => qr/^\d+$|$terminated/);
foreach my $fate (sort keys %expected)
{
  my @of = grep { $fate{$_} eq $fate } sort { $a <=> $b } keys %said;
  my @other = map { "$_: $said{$_}" } grep { $said{$_} !~ $expected{$fate} } @of;
  is(join("\n", @other), '', scalar(@of) . " ($fate) were answered so");
}
cmp_ok(scalar(grep { $fate{$_} =~ /late/ && $said{$_} !~ /^\d+$/ } keys %said), '>', 0, 'some were torn out of a queue that moved');

# The ledger has those who were told that they were granted it, and no other; but for a
# terminated session nobody can tell whether it was told.
my %ledger = map { $_->[0] => $_->[1] } @{ $app->selectall_arrayref('SELECT id, token FROM ledger') };
my @missing = grep { $said{$_} =~ /^\d+$/ && ($ledger{$_} // 0) != $said{$_} } sort keys %said;
is("@missing", '', 'who was granted it has used it, by the token that was returned');
my @more = grep { $said{$_} !~ /^\d+$/ && $fate{$_} ne 'terminate late' } sort keys %ledger;
is("@more", '', 'nobody else has');
is(one($app, 'SELECT count(*) - count(DISTINCT id) FROM ledger'), 0, 'each once');
is(one($app, 'SELECT count(*) - count(DISTINCT token) FROM ledger WHERE mode IN (?, ?, ?)', qw(exclusive lease semaphore)), 0,
  'each with a token of its own');
is(one($app, q{SELECT string_agg(concat_ws(' ', mode, value), ', ' ORDER BY mode) FROM counter}),
  one($app, q{SELECT string_agg(concat_ws(' ', mode, count), ', ' ORDER BY mode) FROM (
    SELECT mode, count(*) FROM ledger WHERE mode IN ('exclusive', 'lease') GROUP BY mode) l}), 'no update is lost');

# At a time.
is(one($app, q{SELECT count(*) FROM ledger a JOIN ledger b USING (name)
    WHERE a.id < b.id AND a.since < b.until AND b.since < a.until AND a.mode <> 'semaphore'
      AND NOT ('intent_share' IN (a.mode, b.mode) AND 'exclusive' NOT IN (a.mode, b.mode))
      AND NOT (a.mode = b.mode AND a.mode IN ('share', 'intent_exclusive'))}), 0,
  'no two had what excludes the other');
is(one($app, q{SELECT max(permits) FROM (
      SELECT sum(p) OVER (ORDER BY at) AS permits FROM (
        SELECT since AS at, permits AS p FROM ledger WHERE mode = 'semaphore'
        UNION ALL SELECT until, -permits FROM ledger WHERE mode = 'semaphore') e) s}), 3,
  'of the semaphore there were never more permits than three, and all of them were used');
is(join("\n", @disorder), '', 'grants came in order of arrival');

### What is left

is(one($app, "SELECT count(*) FROM $_"), 0, "$_ is empty") foreach qw(coord.locks coord.lock_waiters coord.leases coord.leaders
  coord_internal.held_locks() coord_internal.lease_states() coord_internal.lease);
is(one($app, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid >> 8 IN (77, 78, 79)}), 0,
  'the lock manager has no lock, fence or gate');
cmp_ok($memory, '>', 0, 'locks and leases are in shared memory');
# A piece has a megabyte, and sessions that come later may be the first in their places.
cmp_ok($memory_after - $memory, '<=', 1.5 * 2**20, 'of which no more is used after all rounds than after a fifth of them');

# The quota has all its places.
$admin->do(q{ALTER SYSTEM SET coord.max_locks = 40});
one($admin, 'SELECT pg_reload_conf()');
eventually('coord.max_locks is set', $_, 40, q{SELECT setting FROM pg_settings WHERE name = 'coord.max_locks'}) foreach $app, $holder;
$app->begin_work;
is(one($app, q{SELECT cardinality(coord.lock_many(array_agg('n' || n))) FROM generate_series(1, 40) n}), 40,
  'as many as coord.max_locks are granted');
like(error_of($holder, q{SELECT coord.lock('one more')}), qr/^53400/, 'not one more');
$app->rollback;

unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal/, 'no crashes');
$_->disconnect foreach @session, $holder, $app, $admin;
$node->stop;
done_testing();
