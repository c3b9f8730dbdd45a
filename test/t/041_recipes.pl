# Every SQL block of doc/recipes.md is run as it stands, in order, and does what the
# page says.  For pg_cron the server's clock is moved to three in the morning.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

### A server whose clock is ahead by the seconds in a file

my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/clock.c", <<"END");
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>
int gettimeofday(struct timeval *tv, void *tz)
{
	static int (*real)(struct timeval *, void *);
	char text[32] = {0};
	int fd, result;

	if (real == NULL)
		real = (int (*)(struct timeval *, void *)) dlsym(RTLD_NEXT, "gettimeofday");
	result = real(tv, tz);
	fd = open("$dir/offset", O_RDONLY);
	if (fd >= 0)
	{
		if (read(fd, text, sizeof(text) - 1) > 0)
			tv->tv_sec += atol(text);
		close(fd);
	}
	return result;
}
END
system_or_bail('cc', '-shared', '-fPIC', '-o', "$dir/clock.so", "$dir/clock.c", '-ldl');

# 02:57 tomorrow, GMT
my $night = (int(time / 86400) + 1) * 86400 + 3 * 3600;
sub set_clock
{
  my ($to) = @_;
  append_to_file("$dir/offset.new", $to - time);
  rename "$dir/offset.new", "$dir/offset" or die $!;
  return;
}

# pg_cron is installed by scripts/test where Debian has it.
my $node = PostgreSQL::Test::Cluster->new('recipes');
$node->init;
chomp(my $share = `pg_config --sharedir`);
my $cron = -e "$share/extension/pg_cron.control";
my $debian_has_it = $node->pg_version->major =~ /^(15|17|18)$/;
ok($cron, 'pg_cron is there') if $debian_has_it;
configure($node,
  shared_preload_libraries => $cron ? 'coord,pg_cron' : 'coord',
  timezone => 'GMT', fsync => 'off',
  $cron ? ('cron.use_background_workers' => 'on') : ());
set_clock($night - 180);
{
  local $ENV{LD_PRELOAD} = "$dir/clock.so";
  $node->start;
}
my $db = session($node, 'postgres');
$db->do('CREATE EXTENSION pg_cron') if $cron;    # its own default is this database

### What the page leaves to its reader

install_sagas($db);
foreach my $name (qw(etl.extract_orders etl.extract_customers etl.build_report etl.send_mail
  office.book office.unbook office.pay office.tell_boss
  import.load import.unload import.check import.merge
  shop.pack shop.weigh shop.bill shop.bill_by_weight))
{
  my ($schema) = split /\./, $name;
  my $effect = $name =~ /\.un/ ? 'undo' : 'note';
  $db->do("CREATE SCHEMA IF NOT EXISTS $schema");
  $db->do("CREATE FUNCTION $name(doc jsonb) RETURNS void LANGUAGE sql AS 'SELECT public.$effect(doc)'");
}
$db->do('CREATE TABLE shop.orders (id int)');

# A check of customer 42's import takes until the gate opens.
$db->do(q{CREATE OR REPLACE FUNCTION import.check(doc jsonb) RETURNS void LANGUAGE sql AS $$
  SELECT public.note(doc);
  SELECT pg_advisory_xact_lock(1) WHERE doc #>> '{input,customer}' IN ('42', '44', '45') $$});
my $gate = session($node, 'postgres');
$gate->do('SELECT pg_advisory_lock(1)');

# The steps of a saga that have had an effect, in order.
sub effects
{
  my ($id) = @_;
  return one($db, q{SELECT string_agg(CASE phase WHEN 'action' THEN '' ELSE '-' END || step, ' ' ORDER BY id)
    FROM effect WHERE saga = ?}, $id) // '';
}

sub find { return one($db, 'SELECT coord.saga_find(?, ?)', @_) }

sub ends
{
  my ($what, $id, $status) = @_;
  local $Test::Builder::Level = $Test::Builder::Level + 1;
  return eventually("$what: $status", $db, $status, 'SELECT coord.saga_status(?)', $id);
}

# Two days later, in a session of its own.
sub two_days_later
{
  my $later = session($node, 'postgres');
  $later->do(q{SELECT set_config('coord.test_now', (now() + '2 days 1 min')::text, false)});
  $later->do('CALL coord.run_pending()');
  $later->disconnect;
  return;
}

### What holds after a block, found by what it contains

my ($waiting, $outside, @task, @lease);
my @checks = (
  [ qr/saga_define\('nightly'/, sub {
      my $id = one($db, q{SELECT coord.saga_start('nightly', key => 'tried')});
      ends('the nightly saga', $id, 'completed');
      like(effects($id), qr/^(orders customers|customers orders) report mail$/, 'both extracts, then the report');
  } ],
  $cron ? ([ qr/cron\.schedule/, sub {
      ok(wait_for_log_line($node, qr/pg_cron scheduler started/, 0), 'pg_cron runs');
      set_clock($night);
      eventually('at three cron starts it', $db, 1, q{SELECT count(*) FROM coord.sagas WHERE key LIKE 'nightly-%'});
      my $id = find('nightly', one($db, q{SELECT 'nightly-' || current_date}));
      ends('it', $id, 'completed');
      is(one($db, q{SELECT to_char(created_at, 'HH24:MI') FROM coord.sagas WHERE id = ?}, $id), '03:00', 'at three');
      is(one($db, one($db, q{SELECT command FROM cron.job WHERE jobname = 'nightly'})), $id, 'once more is the same');
      $db->do(q{SELECT cron.unschedule('nightly')});
  } ]) : (),
  [ qr/saga_start\('expense'.*expense-7/s, sub {
      eventually('it waits', $db, 'book', q{SELECT string_agg(step, ' ') FROM effect WHERE saga = ?}, find('expense', 'expense-7'));
  } ],
  [ qr/"by": "ann"}', signal_id => 'expense-7-ann'/, sub {
      my ($block) = @_;
      my $id = find('expense', 'expense-7');
      ends('approved', $id, 'completed');
      is(effects($id), 'book pay', 'approved: paid');
      is(one($db, q{SELECT coord.saga_output(?) #>> '{approval,by}'}, $id), 'ann', 'by whom');
      my ($rc) = $node->psql('postgres', $block);
      is($rc, 0, 'a second click does no harm');
      is(effects($id), 'book pay', 'and nothing');
  } ],
  [ qr/too much/, sub {
      my $id = find('expense', 'expense-8');
      ends('refused', $id, 'compensated');
      is(effects($id), 'book -book', 'refused: not paid and taken back');
      like(one($db, 'SELECT error FROM coord.sagas WHERE id = ?', $id), qr/too much/, 'the reason');
      # nobody decides
      $id = one($db, q{SELECT coord.saga_start('expense', '{"expense": 10}')});
      eventually('another', $db, 'book', q{SELECT string_agg(step, ' ') FROM effect WHERE saga = ?}, $id);
      two_days_later();
      ends('undecided', $id, 'compensated');
      is(effects($id), 'book -book', 'undecided: not paid and taken back');
      isnt(one($db, 'SELECT error FROM coord.sagas WHERE id = ?', $id), undef, 'it says why');
  } ],
  [ qr/expense_small/, sub {
      my $id = find('expense_small', 'expense-9');
      $waiting = one($db, q{SELECT coord.saga_start('expense_small', '{"expense": 11}', key => 'expense-11')});
      $db->do(q{SELECT coord.saga_signal(?, 'decided', '{"by": "bob"}')}, undef, $waiting);
      ends('answered', $waiting, 'completed');
      is(effects($waiting), 'book pay', 'answered: the boss is not told');
      $waiting = one($db, q{SELECT coord.saga_start('expense_small', '{"expense": 12}', key => 'expense-12')});
      eventually('two wait', $db, 2, q{SELECT count(*) FROM effect WHERE saga IN (?, ?)}, $id, $waiting);
  } ],
  [ qr/LIKE 'expense%'/, sub {
      my ($block, $output) = @_;
      is(join(' ', map { (split /\|/)[0] } split /\n/, $output), 'expense-9 expense-12', 'who waits, the oldest first');
      two_days_later();
      foreach my $id ($waiting, find('expense_small', 'expense-9'))
      {
        ends('no answer', $id, 'completed');
        is(effects($id), 'book tell_boss pay', 'no answer: the boss is told, and it is paid');
      }
  } ],
  [ qr/saga_define\('import'/, sub {
      my ($block, $output) = @_;
      my $id = find('import', '41/a.csv');
      ends('an import', $id, 'completed');
      my ($rc, $again) = $node->psql('postgres', $block);
      is($again, $output, 'the same file again: the same saga');
      is(effects($id), 'load check merge', 'imported once');
  } ],
  [ qr/SELECT import\.start\(42/, sub {
      my ($block, $output) = @_;
      like($output, qr/^(\d+)\n\n(\d+)$/, 'the second one of a customer is turned away');
      my ($first, $third) = grep { $_ } split /\n/, $output;
      eventually('the first is in the middle', $db, 'check', q{SELECT string_agg(step, ' ') FROM coord.workers WHERE saga_id = ?}, $first);
      $waiting = $third;    # it may share a transaction with the first one's step
      is(one($db, q{SELECT import.start(42, 'b.csv')}), undef, 'still turned away');

      # Two at the same time: the second waits for the first, and is turned away.
      my @two = map { session($node, 'postgres') } 1, 2;
      $two[0]->begin_work;
      isnt(one($two[0], q{SELECT import.start(45, 'a.csv')}), undef, 'one session starts');
      $two[1]->do(q{SELECT import.start(45, 'b.csv')}, { pg_async => DBD::Pg::PG_ASYNC() });
      eventually('the other one waits', $db, 1, q{SELECT count(*) FROM pg_stat_activity
        WHERE query LIKE '%45%b.csv%' AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()});
      $two[0]->commit;
      $two[1]->pg_result;
      is(one($db, q{SELECT count(*) FROM coord.sagas WHERE input ->> 'customer' = '45'}), 1, 'there is one');
      $_->disconnect foreach @two;
  } ],
  [ qr/import_in_turn/, sub {
      my @id = map { find('import_in_turn', "44/$_.csv") } 'a', 'b';
      eventually('one of two imports waits for its turn', $db, 1, q{
        SELECT count(*) FROM coord.saga_steps WHERE saga_id IN (?, ?) AND step = 'turn' AND error LIKE '%imports for this customer%'}, @id);
      eventually('the other one is on its way', $db, 1, q{
        SELECT count(*) FROM coord.workers WHERE saga_id IN (?, ?) AND step = 'check'}, @id);
      $gate->do('SELECT pg_advisory_unlock(1)');
      ends("another customer's", $waiting, 'completed');
      eventually('the first ends', $db, 1, q{SELECT count(*) FROM coord.sagas WHERE id IN (?, ?) AND finished_at IS NOT NULL}, @id);
      $db->do('SELECT coord.saga_retry(id) FROM coord.sagas WHERE id IN (?, ?) AND finished_at IS NULL', undef, @id);
      foreach my $id (@id)
      {
        ends('in turn', $id, 'completed');
        is(effects($id), 'load check merge', 'in turn: imported once');
      }
      is(one($db, q{SELECT count(*) FROM (SELECT saga <> lag(saga) OVER (ORDER BY id) AS change
          FROM effect WHERE saga IN (?, ?)) e WHERE change}, @id), 1, 'one after the other');
  } ],
  [ qr/shop\.bill_by_weight/, sub {
      my ($block, $output) = @_;
      like($output, qr/^1\n\d+\n2\n\d+$/, 'two versions');
      my ($id, $new) = map { find('delivery', $_) } 'old', 'new';
      eventually('the old one waits', $db, 'pack', q{SELECT string_agg(step, ' ') FROM effect WHERE saga = ?}, $id);
      $node->psql('postgres', $block);
      is(one($db, q{SELECT count(*) FROM coord.saga_definitions WHERE name = 'delivery'}), 2, 'again: no further version');
  } ],
  [ qr/WHERE name = 'delivery'/, sub {
      my ($block, $output) = @_;
      is($output, "1|running|1\n2|running|1", 'who runs which version');
  } ],
  [ qr/saga_activate/, sub {
      $db->do(q{SELECT coord.saga_start('delivery', key => 'latest')});
      my %expected = (old => 'pack pickup bill', new => 'pack weigh pickup bill', trial => 'pack weigh pickup bill', latest => 'pack weigh pickup bill');
      foreach my $key (sort keys %expected)
      {
        my $id = find('delivery', $key);
        $db->do(q{SELECT coord.saga_signal(?, 'picked_up')}, undef, $id);
        ends("$key delivery", $id, 'completed');
        is(one($db, 'SELECT string_agg(step, \' \' ORDER BY ordinal) FROM coord.saga_steps WHERE saga_id = ?', $id), $expected{$key},
          "$key delivery: the steps of its version");
      }
      is(one($db, q{SELECT count(*) FROM effect WHERE step = 'bill'}), 4, 'each is billed once');
      # for the next recipe: a worker outside that is busy
      $db->do(q{SELECT coord.saga_define('outside', ARRAY[coord.step('call', queue => 'calls')])});
      $db->do(q{SELECT coord.saga_start('outside') FROM generate_series(1, 2)});
      eventually('two tasks', $db, 2, 'SELECT count(*) FROM coord.tasks');
      ($outside, @task) = @{ $db->selectrow_arrayref(q{SELECT saga_id, task_id, token FROM coord.task_claim('calls')}) };
  } ],
  [ qr/CALL shop\.purge_carts/, sub {
      is(one($db, 'SELECT string_agg(id::text, \' \') FROM shop.carts'), '2', 'old carts are purged');
      $db->do(q{INSERT INTO shop.carts VALUES (3, now() - interval '31 days')});
      $db->do('CALL shop.purge_carts()');
      is(one($db, 'SELECT count(*) FROM shop.carts'), 2, 'not again within the period');
  } ],
  [ qr/leader_campaign/, sub {
      my ($block) = @_;
      is(one($db, 'SELECT string_agg(id::text, \' \') FROM shop.carts'), '2', 'the leader purges');
      $db->do(q{INSERT INTO shop.carts VALUES (4, now() - interval '31 days')});
      $block =~ s/host-1/host-2/;
      is(($node->psql('postgres', $block))[0], 0, 'another host campaigns');
      is(one($db, 'SELECT count(*) FROM shop.carts'), 2, 'and does not purge');
      is(one($db, q{SELECT leader FROM coord.leaders WHERE name = 'shop/scheduler'}), 'host-1', 'the leader stays');
  } ],
  [ qr/fence_guard/, sub {
      my ($rc, undef, $error) = $node->psql('postgres', q{UPDATE shop.feed SET position = 1});
      isnt($rc, 0, 'nobody writes without a token');
      like($error, qr/guarded by "feed\/(prices|weather)"/, 'it says why');
  } ],
  [ qr/lease_acquire\('feed/, sub {
      is(one($db, q{SELECT position FROM shop.feed WHERE name = 'prices'}), 100, 'its holder writes');
      is(one($db, q{SELECT count(*) FROM coord.lease_acquire('feed/prices', 'worker-2')}), 0, 'another one does not get the lease');
      @lease = ($db->selectrow_array(q{SELECT token FROM coord.leases WHERE name = 'feed/prices'}));
  } ],
  [ qr/lease_break/, sub {
      my ($block, $output) = @_;
      is($output, 't', 'taken away');
      is(one($db, q{SELECT count(*) FROM coord.lease_acquire('feed/prices', 'worker-2')}), 1, 'the other one gets it');
      foreach my $call ([ 'fence_check', 'ZC002' ], [ 'lease_renew', 'ZC001' ])
      {
        ok(!eval { $db->do("SELECT coord.$call->[0]('feed/prices', ?)", undef, @lease); 1 }, "$call->[0] of the first one fails");
        is($db->state, $call->[1], 'with that error');
      }
  } ],
  [ qr/coord\.drain/, sub {
      my ($block, $output) = @_;
      is($output, 't', 'drained');
      $waiting = one($db, q{SELECT coord.saga_start('quick')});
      one($db, q{CALL coord.run_pending()});
      is(effects($waiting), '', 'no step begins');
      is(one($db, q{SELECT count(*) FROM coord.task_claim('calls')}), 0, 'no task is given out');
  } ],
  [ qr/FROM coord\.tasks/, sub {
      my ($block, $output) = @_;
      is($output, '1', 'one worker is busy');
      is(one($db, 'SELECT coord.task_complete(?, ?)', @task), 1, 'it reports');
      is(one($db, $block), 0, 'nobody is busy');
  } ],
  [ qr/coord\.resume/, sub {
      ends('resumed', $waiting, 'completed');
      ends('what was reported meanwhile', $outside, 'completed');
      @task = @{ $db->selectrow_arrayref(q{SELECT task_id, token FROM coord.task_claim('calls')}) };
      is(one($db, 'SELECT coord.task_complete(?, ?)', @task), 1, 'the next task');
      eventually('all are finished', $db, 0, 'SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL');
      is(one($db, q{SELECT count(*) FROM information_schema.columns WHERE table_name = 'orders' AND column_name = 'weight'}), 1, 'the column is there');
  } ]);

### The page

my $page = slurp_file('doc/recipes.md');
my $blocks = 0;
while ($page =~ /^```sql( cron)?\n(.*?)^```$/msg)
{
  my ($needs_cron, $block) = ($1, $2);
  next if $needs_cron && !$cron;
  $blocks++;
  my ($rc, $output, $error) = $node->psql('postgres', $block);
  is($rc, 0, "block $blocks runs") or diag "$block\n$error";
  foreach my $check (grep { $block =~ $_->[0] && !$_->[2] } @checks)
  {
    $check->[2] = 1;
    $check->[1]->($block, $output);
  }
}
is($blocks, () = $page =~ /^```sql/mg, 'every block') if $cron;
is(join(' ', map { $_->[0] } grep { !$_->[2] } @checks), '', 'every check has found its block');
is(one($db, 'SELECT count(*) FROM coord.stuck'), 0, 'nothing is stuck');
is(one($db, 'SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL'), 0, 'all are finished');

$_->disconnect foreach $db, $gate;
$node->stop;
done_testing();
