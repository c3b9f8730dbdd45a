# A day's work: hot tables, their indexes and the worker's memory do not grow with
# what has been done, and doing nothing costs nothing.
#
# 200,000 sagas and a minute of idleness; COORD_SHORT=1 for 40,000 and 15 s.

use strict;
use warnings FATAL => 'all';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

my $long = !$ENV{COORD_SHORT};
my $half = $long ? 100_000 : 20_000;
my $chunk = $long ? 5_000 : 2_000;
my $idle_seconds = $long ? 60 : 15;

my $node = PostgreSQL::Test::Cluster->new('endurance');
$node->init;
# One worker, that stays, so that its memory can be compared.
$node->append_conf('postgresql.conf', q{
shared_preload_libraries = 'coord'
fsync = off
log_statement = none
autovacuum = off
coord.max_workers = 1
coord.worker_idle_timeout = 1h
});
$node->start;
$node->safe_psql('postgres', q{
CREATE EXTENSION coord;
CREATE TABLE effect (saga bigint, step text);
CREATE FUNCTION work(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO effect VALUES ((doc ->> 'saga_id')::bigint, doc ->> 'step');
  RETURN jsonb_build_object('step', doc ->> 'step');
END $$;
CREATE FUNCTION refuse(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
CREATE FUNCTION undo(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO effect VALUES ((doc ->> 'saga_id')::bigint, 'undo ' || (doc ->> 'step'));
END $$;
CREATE FUNCTION work_later(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF (doc ->> 'attempt')::int < 3 THEN
    RAISE 'not yet' USING ERRCODE = '40001';
  END IF;
  RETURN work(doc);
END $$;
SELECT coord.saga_define('later', ARRAY[coord.step('one', 'work'),
  coord.step('two', 'work_later', retry_delay => '5 ms', retry_max_delay => '5 ms'), coord.step('three', 'work')]);
SELECT coord.saga_define('work', ARRAY[coord.step('one', 'work'), coord.step('two', 'work'), coord.step('three', 'work')]);
SELECT coord.saga_define('refused', ARRAY[coord.step('one', 'work', 'undo'), coord.step('two', 'work', 'undo'), coord.step('three', 'refuse')]);
});

# Autovacuum's work, done by the clock of the test.
my @hot = qw(saga saga_step saga_request);

# Starts so many, with keys, of fifty of which one will fail and one needs three
# attempts, and waits for them;
# now and then an operator asks for something.
sub do_half
{
  my ($name) = @_;
  my $begin = time;
  my $most = 0;

  for (my $n = 0; $n < $half; $n += $chunk)
  {
    $node->safe_psql('postgres', qq{
      SELECT count(coord.saga_start(CASE g % 50 WHEN 0 THEN 'refused' WHEN 1 THEN 'later' ELSE 'work' END,
                                    jsonb_build_object('n', g), key => '$name-' || g))
      FROM generate_series($n + 1, $n + $chunk) g;
      SELECT coord.saga_cancel(coord.saga_start('work', start_at => now() + '1 hour')) FROM generate_series(1, 20)});
    $node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM coord_internal.saga')
      or die 'they do not finish';
    $node->safe_psql('postgres', "VACUUM coord_internal.$_") foreach @hot;
    my $now = memory(pid_of('coord worker'));
    $most = $now if $now > $most;
  }
  note sprintf '%s: %.0f sagas/s', $name, $half / (time - $begin);
  return $most;
}

# Bytes by table or index, as an operator finds them who leaves it to plain VACUUM.
sub sizes
{
  return { map { split /\|/ } split /\n/, $node->safe_psql('postgres', q{
    WITH hot AS (SELECT oid FROM pg_class WHERE relname = ANY ('{saga,saga_step,saga_request}')
                                            AND relnamespace = 'coord_internal'::regnamespace)
    SELECT c.relname, pg_relation_size(c.oid) FROM pg_class c
    WHERE c.oid IN (SELECT oid FROM hot UNION SELECT indexrelid FROM pg_index JOIN hot ON indrelid = hot.oid)
    ORDER BY 1}) };
}

sub pid_of
{
  my ($type) = @_;
  return $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = '$type'");
}

# Its own memory in kB, without the shared memory that it happens to be the only
# one to have touched.
sub memory
{
  my ($pid) = @_;
  my ($kb, $own) = (0, 0);
  foreach my $line (split /\n/, slurp_file("/proc/$pid/smaps"))
  {
    $own = $1 eq 'p' if $line =~ /^[0-9a-f]+-[0-9a-f]+ ...(.)/;
    $kb += $1 if $own && $line =~ /^Private_Dirty: +(\d+) kB/;
  }
  return $kb;
}

# What of it is in use, in bytes, by the worker's own account.
sub used
{
  my ($pid) = @_;
  my $offset = -s $node->logfile;
  my $until = time + 60;
  $node->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts($pid)");
  while (time < $until)
  {
    return $1 if slurp_file($node->logfile, $offset) =~ /\[$pid\].*Grand total: .* (\d+) used$/m;
    sleep 0.02;
  }
  die 'no account of memory';
}

# utime + stime, in ticks
sub ticks
{
  my ($pid) = @_;
  my @field = split / /, (slurp_file("/proc/$pid/stat") =~ s/.*\) //r);
  return $field[11] + $field[12];
}

my $memory = do_half('first');
my $first = sizes();
my $worker = pid_of('coord worker');
my $launcher = pid_of('coord launcher');
like($worker, qr/^\d+$/, 'one worker');
cmp_ok($memory, '>', 500, 'its memory can be seen');
my %used = map { $_ => used($_) } $worker, $launcher;

my $grown = do_half('second') - $memory;
my $second = sizes();
is(pid_of('coord worker'), $worker, 'it was the same all the time');
cmp_ok($grown, '<', 1024, "its memory has grown by $grown kB from $memory kB");
foreach my $pid ($worker, $launcher)
{
  $grown = used($pid) - $used{$pid};
  cmp_ok($grown, '<', 65536, ($pid == $worker ? 'worker' : 'launcher') . ": $grown bytes more in use than $used{$pid}");
}

# Ten per cent, or a page where they are that small.
cmp_ok(scalar(keys %$second), '>=', 7, 'all were measured');
cmp_ok($second->{$_}, '>', 8192, "$_ was used") foreach qw(saga_pkey saga_step_pkey);
foreach my $name (sort keys %$second)
{
  cmp_ok($second->{$name}, '<=', $first->{$name} * 1.1 + 8192, "$name: from $first->{$name} to $second->{$name} bytes");
}

is($node->safe_psql('postgres', 'SELECT status, count(*) FROM coord.sagas GROUP BY 1 ORDER BY 1'),
  join("\n", 'compensated|' . $half / 25, 'completed|' . (2 * $half - $half / 25), 'failed|' . 40 * $half / $chunk),
  'all of them are finished');
is($node->safe_psql('postgres', 'SELECT step, count(*), count(DISTINCT saga) FROM effect GROUP BY 1 ORDER BY 1'),
  join("\n", map { "$_->[0]|$_->[1]|$_->[1]" } [ 'one', 2 * $half ], [ 'three', 2 * $half - $half / 25 ],
    [ 'two', 2 * $half ], [ 'undo one', $half / 25 ], [ 'undo two', $half / 25 ]),
  'and each did what it had to, once');
is($node->safe_psql('postgres', 'SELECT count(*) FROM coord_internal.saga_step'), '0', 'no steps stay behind');
is($node->safe_psql('postgres', 'SELECT count(*) FROM coord_internal.saga_request'), '0', 'nor requests');

### Doing nothing

# It may have something to tidy up; then it is quiet.  A timer in the future is
# not a reason to wake before.
$node->safe_psql('postgres', q{SELECT coord.saga_start('work', start_at => now() + '1 hour')});
$node->poll_query_until('postgres', q{
  SELECT bool_and(wait_event_type IN ('Extension', 'Activity')) FROM pg_stat_activity WHERE backend_type ~ '^coord'})
  or die 'no rest';
sleep 1;
my %before = map { $_ => ticks($_) } $worker, $launcher;
sleep $idle_seconds;
cmp_ok(ticks($worker) - $before{$worker}, '<=', 1, "$idle_seconds s idle: worker");
cmp_ok(ticks($launcher) - $before{$launcher}, '<=', 1, "$idle_seconds s idle: launcher");

# A worker with nothing to do goes home, and with it the database's connection.
$node->append_conf('postgresql.conf', "coord.worker_idle_timeout = '200ms'");
$node->reload;
$node->safe_psql('postgres', q{SELECT coord.saga_start('work')});
ok($node->poll_query_until('postgres',
    q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'coord worker'}), 'a worker goes home');
is($node->safe_psql('postgres', "SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL"), '1', 'having done what was due');

$node->stop;
done_testing();
