# The system clock is set back, as by NTP or in a machine that was stopped: what is
# due by the new time is done, by workers that live and where none does.
#
# The server gets a gettimeofday() that adds what a file says.

use strict;
use warnings FATAL => 'all';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $dir = PostgreSQL::Test::Utils::tempdir();
my $file = "$dir/offset";

append_to_file("$dir/clock.c", qq{
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
	fd = open("$file", O_RDONLY);
	if (fd >= 0)
	{
		if (read(fd, text, sizeof(text) - 1) > 0)
			tv->tv_sec += atol(text);
		close(fd);
	}
	return result;
}
});
system_or_bail('cc', '-shared', '-fPIC', '-o', "$dir/clock.so", "$dir/clock.c", '-ldl');

sub set_clock
{
  my ($offset) = @_;
  open my $fh, '>', "$file.new" or die $!;
  print $fh $offset;
  close $fh;
  rename "$file.new", $file or die $!;
}

my $node = PostgreSQL::Test::Cluster->new('clock');
$node->init;
$node->append_conf('postgresql.conf', q{
shared_preload_libraries = 'coord'
fsync = off
log_statement = none
coord.worker_idle_timeout = 1h
});
set_clock(0);
{
  local $ENV{LD_PRELOAD} = "$dir/clock.so";
  $node->start;
}
$node->safe_psql('postgres', q{
CREATE EXTENSION coord;
CREATE FUNCTION work(doc jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
CREATE FUNCTION later(doc jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF (doc ->> 'attempt')::int < 3 THEN RAISE 'not yet' USING ERRCODE = '40001'; END IF;
END $$;
SELECT coord.saga_define('work', ARRAY[coord.step('work', 'work')]);
SELECT coord.saga_define('later', ARRAY[coord.step('work', 'work'),
  coord.step('later', 'later', retry_delay => '50 ms', retry_max_delay => '50 ms')]);
});

# Starts a saga; does it complete, before a safety scan or soon after one?
sub completes
{
  my ($name, $options, $what) = @_;
  my $id = $node->safe_psql('postgres', "SELECT coord.saga_start('$name'$options)");
  my $until = time + 45;
  my $status;
  while (($status = $node->safe_psql('postgres', "SELECT coord.saga_status($id)")) ne 'completed' && time < $until)
  {
    sleep 0.05;
  }
  is($status, 'completed', $what)
    or diag $node->safe_psql('postgres', "SELECT now(), status, wake_at FROM coord.sagas WHERE id = $id; SELECT * FROM coord.workers; SELECT * FROM coord.stuck");
}

sub workers
{
  return $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'coord worker'});
}

completes('work', '', 'before');
my $before = $node->safe_psql('postgres', 'SELECT now()');
set_clock(-3600);
is($node->safe_psql('postgres', "SELECT now() < '$before'"), 't', 'the clock is an hour behind');
cmp_ok(workers(), '>=', 1, 'a worker is there');
completes('work', '', 'a saga started now');
completes('later', '', 'one that is tried again');
completes('work', q{, start_at => now() + '0.2 s'}, 'one that starts in a moment');

# The same with workers that are not there.
$node->append_conf('postgresql.conf', "coord.worker_idle_timeout = '100ms'");
$node->reload;
completes('work', '', 'a worker takes notice of its setting');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'coord worker'}), 'none is there');
set_clock(-7200);
completes('work', '', 'nobody there: a saga started now');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'coord worker'}), 'none is there again');
set_clock(-10800);
completes('later', '', 'nobody there: one that is tried again');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'coord worker'}), 'none is there once more');
completes('work', q{, start_at => now() + '2 s'}, 'nobody there: one that starts in a moment');

# Forth again.
set_clock(0);
completes('work', '', 'forth again: a saga started now');
completes('later', '', 'forth again: one that is tried again');
is($node->safe_psql('postgres', 'SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL'), '0', 'none is left');
is($node->safe_psql('postgres', 'SELECT count(*) FROM coord.stuck'), '0', 'nothing is stuck');

$node->stop;
done_testing();
