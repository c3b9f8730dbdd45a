# The payment workers of examples/, directly and through PgBouncer in transaction
# mode: each is killed -9 between what it does at the provider and its report, and
# in the end every key has exactly one effect.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my %command = (
  python => [ '/usr/bin/python3', '-B', 'examples/worker.py' ],
  javascript => [ 'node', 'examples/worker.js' ],
  shell => [ 'bash', 'examples/worker.sh' ]);

# The clock stands still but for pass_time(), so that no lease ends by itself.
my $node = new_cluster('examples', 'coord.max_function_wait' => '200ms', 'fsync' => 'off');
my $clock = 0;
$node->safe_psql('postgres', 'CREATE DATABASE shop');
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('shop'), '-f', 'examples/payment.sql' ],
  'payment.sql');

my $shop = session($node, 'shop');
my $provider = session($node, 'provider');
my $user = 'payment_worker';

# A provider that remembers what it was asked for, is out of order at times, and,
# after it has done it, answers only when the test lets it.
$provider->do($_) foreach (
  q{CREATE TABLE request (key text)},
  q{CREATE TABLE outage ()},
  qq{GRANT SELECT, INSERT ON request, outage TO $user},
  q{ALTER PROCEDURE charge_card(text, numeric) RENAME TO really_charge_card},
  q{ALTER PROCEDURE refund_card(text, text) RENAME TO really_refund_card},
  map { qq{CREATE PROCEDURE $_->[0](key text, what $_->[1]) LANGUAGE plpgsql AS \$\$
    BEGIN
      INSERT INTO request VALUES (key);
      COMMIT;
      IF EXISTS (SELECT FROM outage) THEN
        RAISE 'out of order' USING ERRCODE = '58030';
      END IF;
      CALL really_$_->[0](key, what);
      COMMIT;
      PERFORM pg_advisory_xact_lock_shared($_->[2]);
    END \$\$} } ([ 'charge_card', 'numeric', 1 ], [ 'refund_card', 'text', 2 ]));

# The program is in sbin, which is not in everybody's path.
local $ENV{PATH} = "$ENV{PATH}:/usr/sbin";
my $dir = PostgreSQL::Test::Utils::tempdir;
my $port = PostgreSQL::Test::Cluster::get_free_port();
append_to_file("$dir/users", qq{"$user" ""\n});
append_to_file("$dir/pgbouncer.ini", join "\n", '[databases]',
  '* = host=' . $node->host . ' port=' . $node->port, '[pgbouncer]',
  'listen_addr = 127.0.0.1', "listen_port = $port", 'unix_socket_dir =', 'auth_type = trust',
  "auth_file = $dir/users", 'pool_mode = transaction', 'default_pool_size = 4', 'max_client_conn = 50',
  "logfile = $dir/log", "pidfile = $dir/pid", '');
my $bouncer = IPC::Run::start([ 'pgbouncer', '-q', "$dir/pgbouncer.ini" ], '<', \undef, '>', '/dev/null', '2>', "$dir/err");
my %place = (direct => [ $node->host, $node->port ], pooled => [ '127.0.0.1', $port ]);

### What the cases are made of

my ($language, $way, $case);
my $workers = 0;
my %ledger;

# A minute and more: leases end, delays pass.
sub pass_time
{
  $clock += 61;
  my $now = one($shop, q{SELECT '2030-01-01 00:00+00'::timestamptz + ? * interval '1 s'}, $clock);
  $node->append_conf('postgresql.conf', "coord.test_now = '$now'");
  $node->reload;
  return wait_until($shop, $now, 'SHOW coord.test_now');
}

sub start_worker
{
  local @ENV{qw(PGHOST PGPORT PGUSER PGDATABASE)} = (@{ $place{$way} }, $user, 'shop');
  my $log = "$PostgreSQL::Test::Utils::log_path/040_${language}_${way}_" . ++$workers;
  return { log => $log, run => IPC::Run::start($command{$language}, '<', '/dev/null', '>', $log, '2>&1') };
}

sub kill_worker
{
  my ($worker) = @_;
  $worker->{run}->signal('KILL');
  $worker->{run}->finish;
  return;
}

sub stop_worker
{
  my ($worker) = @_;
  $worker->{run}->signal('TERM');
  $worker->{run}->finish;
  is($worker->{run}->full_result(0), 0, "$case: a worker that is asked to stops") or diag slurp_file($worker->{log});
  return;
}

# Does its output have a match, sooner or later?
sub says
{
  my ($worker, $pattern) = @_;
  my $end = time + 20;
  sleep 0.05 until slurp_file($worker->{log}) =~ $pattern || time > $end;
  return slurp_file($worker->{log}) =~ $pattern;
}

# Starts an order.
sub order
{
  my ($what, $amount, $address) = @_;
  $shop->do('SET ROLE shop');
  my $id = one($shop, q{SELECT coord.saga_start('order', jsonb_build_object('amount', ?::numeric, 'address', ?::text), key => ?)},
    $amount, $address, "$language $way $what");
  $shop->do('RESET ROLE');
  return $id;
}

sub ends
{
  my ($id, $status, $what) = @_;
  return eventually("$case: $what: $status", $shop, $status, 'SELECT coord.saga_status(?)', $id);
}

# Key, number of requests and amount, for all that belongs to a saga.
sub ledger
{
  my ($id) = @_;
  return one($provider, q{
    SELECT string_agg(format('%s %s %s', key, asked, amount), ', ' ORDER BY key COLLATE "C")
    FROM (SELECT key, count(*) AS asked FROM request GROUP BY 1) r
    FULL JOIN (SELECT idempotency_key AS key, amount::int FROM payment) p USING (key)
    WHERE key LIKE ? || '/%'}, $id) // '';
}

# It is as given, saga standing for the id, and stays so.
sub balance
{
  my ($id, $expected, $what) = @_;
  $expected =~ s/saga/$id/g;
  $ledger{$id} = $expected;
  return is(ledger($id), $expected, "$case: $what");
}

sub hold
{
  return $provider->do('SELECT pg_advisory_lock(?)', undef, @_);
}

sub let_go
{
  return $provider->do('SELECT pg_advisory_unlock(?)', undef, @_);
}

sub wait_at_provider
{
  my ($count, $what) = @_;
  return eventually("$case: $what", $provider, $count, q{
    SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
    WHERE locktype = 'advisory' AND NOT granted AND datname = 'provider'});
}

sub task
{
  my ($id) = @_;
  return join ' ', @{ $shop->selectrow_arrayref('SELECT phase, status, attempt FROM coord.tasks WHERE saga_id = ?', undef, $id) // ['none'] };
}

### The cases

pass_time();
foreach my $name (sort keys %command)
{
  foreach my $place (sort keys %place)
  {
    ($language, $way, $case) = ($name, $place, "$name, $place");

    # Killed when it has charged.
    hold(1);
    my $id = order('killed', 10, 'here');
    my $worker = start_worker();
    wait_at_provider(1, 'a charge is made and not answered') or diag slurp_file($worker->{log});
    kill_worker($worker);
    balance($id, 'saga/charge 1 10', 'the effect is there');
    is(task($id), 'action running 1', "$case: and not reported");
    let_go(1);
    pass_time();
    $worker = start_worker();
    ends($id, 'completed', 'killed after a charge') or diag slurp_file($worker->{log});
    balance($id, 'saga/charge 2 10', 'asked for twice, charged once');

    # Killed when it has refunded.
    hold(2);
    $id = order('killed back', 20, undef);
    wait_at_provider(1, 'a refund is made and not answered');
    kill_worker($worker);
    balance($id, 'saga/charge 1 20, saga/charge/compensation 1 -20', 'the refund is there');
    is(task($id), 'compensation running 1', "$case: and not reported");
    let_go(2);
    pass_time();
    $worker = start_worker();
    ends($id, 'compensated', 'killed after a refund') or diag slurp_file($worker->{log});
    balance($id, 'saga/charge 1 20, saga/charge/compensation 2 -20', 'asked for twice, refunded once');

    # So slow that another one has the task meanwhile.
    hold(1);
    $id = order('slow', 30, 'here');
    wait_at_provider(1, 'a charge takes longer than its lease');
    pass_time();
    my $other = start_worker();
    wait_at_provider(2, 'another worker has the task') or diag slurp_file($other->{log});
    let_go(1);
    ends($id, 'completed', 'slow');
    balance($id, 'saga/charge 2 30', 'asked for twice by two, charged once');
    ok(says($worker, qr/ZC001|another worker has it now/), "$case: the slow one was told");
    stop_worker($other);

    # So slow that its saga is cancelled meanwhile.
    hold(1);
    $id = order('slow and cancelled', 35, 'here');
    wait_at_provider(1, 'a charge takes longer than its lease, again');
    pass_time();
    one($shop, 'CALL coord.run_pending()');
    eventually("$case: the lease has ended", $shop, 'ready', 'SELECT status FROM coord.tasks WHERE saga_id = ?', $id);
    one($shop, 'SELECT coord.saga_cancel(?)', $id);
    eventually("$case: it turns back", $shop, 'compensation ready 0', q{SELECT concat_ws(' ', phase, status, attempt) FROM coord.tasks WHERE saga_id = ?}, $id);
    let_go(1);
    ends($id, 'compensated', 'slow and cancelled');
    balance($id, 'saga/charge 1 35, saga/charge/compensation 1 -35', 'charged and refunded');
    ok(says($worker, qr/ZC011|its saga was cancelled/), "$case: the slow one was told");

    # What a provider does at times.
    $provider->do('INSERT INTO outage DEFAULT VALUES');
    $id = order('outage', 40, 'here');
    eventually("$case: it is tried again later", $shop, 'delayed', 'SELECT status FROM coord.tasks WHERE saga_id = ?', $id);
    $provider->do('DELETE FROM outage');
    pass_time();
    ends($id, 'completed', 'outage');
    balance($id, 'saga/charge 2 40', 'asked for twice, charged once');
    $id = order('declined', 5000, 'here');
    ends($id, 'compensated', 'declined');
    balance($id, 'saga/charge 1 0, saga/charge/compensation 1 0', 'asked for once, nothing was paid');
    is(one($shop, q{SELECT error LIKE '%card declined%' FROM coord.sagas WHERE id = ?}, $id), 1, "$case: the reason");

    # Nobody has begun what has to be undone.
    stop_worker($worker);
    $id = order('cancelled', 50, 'here');
    eventually("$case: a task", $shop, 'ready', 'SELECT status FROM coord.tasks WHERE saga_id = ?', $id);
    one($shop, 'SELECT coord.saga_cancel(?)', $id);
    $worker = start_worker();
    ends($id, 'compensated', 'cancelled before it was begun');
    balance($id, '', 'the provider was not asked');
    stop_worker($worker);
  }
}

# All at once.
my @all;
foreach my $name (sort keys %command)
{
  foreach my $place (sort keys %place)
  {
    ($language, $way, $case) = ($name, $place, 'all at once');
    push @all, start_worker();
  }
}
$shop->do('SET ROLE shop');
my $some = $shop->selectcol_arrayref(q{
  SELECT coord.saga_start('order', jsonb_build_object('amount', n, 'address', CASE WHEN n % 3 > 0 THEN 'here' END), key => 'crowd ' || n)
  FROM generate_series(1, 60) n});
$shop->do('RESET ROLE');
eventually('all at once: they end', $shop, '40 20',
  q{SELECT concat_ws(' ', count(*) FILTER (WHERE status = 'completed'), count(*) FILTER (WHERE status = 'compensated'))
    FROM coord.sagas WHERE key LIKE 'crowd %'});
$ledger{ $some->[ $_ - 1 ] } = "$some->[$_ - 1]/charge 1 $_" .
  ($_ % 3 ? '' : ", $some->[$_ - 1]/charge/compensation 1 -$_") foreach 1 .. 60;
# Some may only just have come up, and do not know yet what to do when asked to stop.
kill_worker($_) foreach @all;

is_deeply({ map { $_ => ledger($_) } keys %ledger }, \%ledger, 'every saga has its effects, once');
is(scalar(keys %ledger), one($shop, 'SELECT count(*) FROM coord.sagas'), 'there are no others');
is(one($provider, q{SELECT count(*) FROM (SELECT FROM payment WHERE NOT split_part(idempotency_key, '/', 1) = ANY (?)) p}, [ keys %ledger ]),
  0, 'and nothing was paid for others');

# What worker.py writes itself is there if and only if its report was taken.
is(one($shop, q{SELECT string_agg(DISTINCT what, ', ' ORDER BY what)
    FROM (SELECT s.id, string_agg(substr(b.key, strpos(b.key, '/')), ' ' ORDER BY b.key) AS keys, substr(s.key, 8) AS key
          FROM shop.booking b JOIN coord.sagas s ON s.id = split_part(b.key, '/', 1)::bigint
          WHERE s.key LIKE 'python %' GROUP BY 1, 3) b,
      LATERAL (SELECT (regexp_replace(b.key, '^(direct|pooled) ', '') || ': ' || keys) COLLATE "C" AS what) w}),
  join(', ', 'cancelled: /charge/compensation', 'declined: /charge/compensation', 'killed back: /charge /charge/compensation',
    'killed: /charge', 'outage: /charge', 'slow and cancelled: /charge/compensation', 'slow: /charge'), "the shop's own record");
is(one($shop, q{SELECT count(*) FROM shop.booking b JOIN coord.sagas s ON s.id = split_part(b.key, '/', 1)::bigint
    WHERE s.key LIKE 'python %'}), 16, 'all of it');

is(one($shop, 'SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL'), 0, 'all are finished');
is(one($shop, 'SELECT count(*) FROM coord.tasks'), 0, 'no task is left');
is(one($shop, 'SELECT count(*) FROM coord.stuck'), 0, 'nothing is stuck');

$shop->disconnect;
$provider->disconnect;
$bouncer->signal('INT');
$bouncer->finish;
$node->stop;
done_testing();
