# Workers outside: what a restart, a crash, a prepared transaction, a standby, or
# hundreds of queues do to queues, and who is woken when.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/../perl";
use CoordCluster;
use DBD::Pg;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = PostgreSQL::Test::Cluster->new('tasks');
$node->init(allows_streaming => 1);
configure($node, shared_preload_libraries => 'coord', max_prepared_transactions => 5,
  wal_writer_delay => '10s');
$node->start;
my $dbh = session($node, 'postgres');
$dbh->do($_) foreach (
  q{CREATE EXTENSION coord},
  q{CREATE TABLE held (key text, task_id bigint, token bigint)},
  q{CREATE FUNCTION claim(queue text, max_tasks int DEFAULT 1, lease interval DEFAULT '1 min',
      timeout interval DEFAULT '0') RETURNS text LANGUAGE sql AS $$
      SELECT string_agg(payload ->> 'key', ' ' ORDER BY ordinality)
      FROM coord.task_claim(queue, max_tasks, NULL, lease, timeout) WITH ORDINALITY $$},
  # Everything is handed out when it returns.
  q{CREATE FUNCTION ready(q text) RETURNS bigint LANGUAGE sql AS
      $$ SELECT ready FROM coord.queues WHERE queue = q $$},
  q{SELECT coord.saga_define('one', ARRAY[coord.step('s', queue => 'q')])},
  q{SELECT coord.saga_define('other', ARRAY[coord.step('s', queue => 'q')])},
  q{SELECT coord.saga_define('wide', ARRAY[coord.step('s', queue => 'q', for_each => '$.input[*]')])});

sub start { return one($dbh, 'SELECT coord.saga_start(?, key => ?)', @_) }
sub claim { return one($dbh, 'SELECT claim(?, ?, ?)', shift, shift // 1, shift // '1 min') // '' }

sub clear
{
  $dbh->do(q{SELECT coord.saga_abandon(id) FROM coord.sagas WHERE finished_at IS NULL});
  eventually('nothing is left', $dbh, '0', 'SELECT count(*) FROM coord_internal.task');
}

# A session that claims in the background; done() says what it got and when.
sub claim_later
{
  my ($timeout, $queue) = @_;
  my $other = session($node, 'postgres');
  $other->do(q{SET coord.max_function_wait = '1 min'});
  my $pid = $other->{pg_pid};
  $other->do("SELECT claim('" . ($queue // 'q') . "', 1, '1 min', '$timeout')",
    { pg_async => DBD::Pg::PG_ASYNC() });
  eventually('a worker waits', $dbh, 'Extension',
    q{SELECT wait_event_type FROM pg_stat_activity WHERE pid = ?}, $pid);
  return { dbh => $other, pid => $pid, begin => time };
}

sub done
{
  my ($later) = @_;
  my $end = time + 20;
  sleep 0.002 until $later->{dbh}->pg_ready || time > $end;
  $later->{seconds} = time - $later->{begin};
  return 'still waits' unless $later->{dbh}->pg_ready;
  $later->{dbh}->pg_result;
  return 'done';
}

### Places go on after a restart: a new task of one that has many does not come
### before them, one of another does not come behind them.
one($dbh, q{SELECT coord.saga_start('wide', (SELECT jsonb_agg(i) FROM generate_series(1, 1000) i), key => 'w')});
eventually('tasks are handed out', $dbh, '1000', q{SELECT ready('q')});
claim('q', 10);
$dbh->disconnect;
$node->restart;
$dbh = session($node, 'postgres');
start('other', 'o1');
eventually('another one', $dbh, '991', q{SELECT ready('q')});
one($dbh, q{SELECT coord.saga_start('wide', '[1, 2]', key => 'w2')});
eventually('and more of the first', $dbh, '993', q{SELECT ready('q')});
is(claim('q', 2), 'w o1', 'after a restart a new task is claimed within two claims');
is(one($dbh, q{SELECT count(*) FROM unnest(string_to_array(?, ' ')) AS k WHERE k = 'w2'}, claim('q', 980)), 0,
  'and those of the definition that has many come behind what it has');
is(one($dbh, q{SELECT count(*) FROM unnest(string_to_array(?, ' ')) AS k WHERE k = 'w2'}, claim('q', 100)), 2,
  'and come at last');
clear();

### A claim is not durable by itself; with other writes it is.
start('one', 'a');
eventually('ready', $dbh, '1', q{SELECT ready('q')});
my ($lost, $again) = (undef, '');
foreach my $attempt (1 .. 5)
{
  # The WAL writer may come by every ten seconds.
  $dbh->do('CHECKPOINT');
  $lost = $dbh->selectrow_hashref(q{SELECT task_id, token FROM coord.task_claim('q', lease => '1 h')});
  $dbh->disconnect;
  $node->stop('immediate');
  $node->start;
  $dbh = session($node, 'postgres');
  $again = claim('q', 1, '1 h');
  last if $again eq 'a';
  $dbh->do('SELECT coord.task_release(?, ?)', undef, $lost->{task_id}, $lost->{token});
}
is($again, 'a', 'what was only claimed before a crash can be claimed again');
like(error_of($dbh, 'SELECT coord.task_complete(?, ?)', $lost->{task_id}, $lost->{token}), qr/^ZC001/,
  'and the token from before is worth nothing');
start('one', 'b');
eventually('ready', $dbh, '1', q{SELECT ready('q')});
$dbh->do('CHECKPOINT');
$dbh->begin_work;
$dbh->do(q{INSERT INTO held SELECT payload ->> 'key', task_id, token FROM coord.task_claim('q', lease => '1 h')});
$dbh->commit;
$dbh->disconnect;
$node->stop('immediate');
$node->start;
$dbh = session($node, 'postgres');
is(one($dbh, 'SELECT key FROM held'), 'b', 'what was written with a claim is there after a crash');
is(one($dbh, 'SELECT coord.task_complete(task_id, token) FROM held'), 1, 'and so is the claim');
clear();

### Woken by a commit, one waiter for each task.
my @waiters = map { claim_later('20 s') } 1 .. 3;
start('one', "k$_") foreach 1 .. 2;
my $end = time + 10;
sleep 0.01 until 2 <= grep({ $_->{dbh}->pg_ready } @waiters) || time > $end;
is(scalar(grep { $_->{dbh}->pg_ready } @waiters), 2, 'two tasks end the waiting of two');
start('one', 'k3');
is(join(' ', map { done($_) } @waiters), 'done done done', 'a third task that of the third');
$_->{dbh}->disconnect foreach @waiters;
clear();

### Woken when a delay is over, a lease ends, a session with a claim goes away.
my $waiter;
start('one', 'd');
eventually('ready', $dbh, '1', q{SELECT ready('q')});
my $task = $dbh->selectrow_hashref(q{SELECT task_id, token FROM coord.task_claim('q')});
$waiter = claim_later('20 s');
$dbh->do(q{SELECT coord.task_fail(?, ?, 'later', retry_in => '1 s')}, undef, $task->{task_id}, $task->{token});
is(done($waiter), 'done', 'a delay is over');
cmp_ok($waiter->{seconds}, '<', 3, 'and a waiter is told at once');
cmp_ok($waiter->{seconds}, '>', 0.5, 'but not before');
clear();
start('one', 'l');
eventually('ready', $dbh, '1', q{SELECT ready('q')});
is(claim('q', 1, '1 s'), 'l', 'a short lease');
$waiter = claim_later('20 s');
is(done($waiter), 'done', 'a lease ends');
cmp_ok($waiter->{seconds}, '<', 3, 'and a waiter is told at once');
clear();
start('one', 'x');
eventually('ready', $dbh, '1', q{SELECT ready('q')});
my $dies = session($node, 'postgres');
$dies->begin_work;
is(one($dies, q{SELECT claim('q')}), 'x', 'claimed, not committed');
$waiter = claim_later('20 s');
$dbh->do('SELECT pg_terminate_backend(?)', undef, $dies->{pg_pid});
is(done($waiter), 'done', 'a session that claimed dies');
cmp_ok($waiter->{seconds}, '<', 3, 'and a waiter is told at once');
clear();

### Prepared transactions: claims that are rolled back, tasks that are given back.
start('one', 'p');
eventually('ready', $dbh, '1', q{SELECT ready('q')});
$dbh->begin_work;
is(claim('q'), 'p', 'claimed');
$dbh->do(q{PREPARE TRANSACTION 'claims'});
$dbh->{AutoCommit} = 1;
is(claim('q'), '', 'nobody else gets what is claimed in a prepared transaction');
$waiter = claim_later('20 s');
$dbh->do(q{ROLLBACK PREPARED 'claims'});
is(done($waiter), 'done', 'until that is rolled back');
cmp_ok($waiter->{seconds}, '<', 3, 'at once');
$task = $dbh->selectrow_hashref(q{SELECT id, token FROM coord_internal.task});
$dbh->begin_work;
$dbh->do('SELECT coord.task_release(?, ?)', undef, $task->{id}, $task->{token});
$dbh->do(q{PREPARE TRANSACTION 'gives back'});
$dbh->{AutoCommit} = 1;
$waiter = claim_later('20 s');
$dbh->do(q{COMMIT PREPARED 'gives back'});
is(done($waiter), 'done', 'what a prepared transaction gives back can be claimed when it commits');
cmp_ok($waiter->{seconds}, '<', 3, 'at once');
clear();

### NOTIFY: from the worker, once for many.
my $listener = session($node, 'postgres');
$listener->do('LISTEN coord_queue_q');
start('one', "n$_") foreach 1 .. 50;
eventually('ready', $dbh, '50', q{SELECT ready('q')});
my @notified;
$end = time + 5;
while (time < $end && !@notified)
{
  while (my $notify = $listener->pg_notifies) { push @notified, $notify }
  sleep 0.01;
}
sleep 0.3;
while (my $notify = $listener->pg_notifies) { push @notified, $notify }
cmp_ok(scalar(@notified), '>=', 1, 'who listens to the queue is told');
cmp_ok(scalar(@notified), '<', 10, 'but not of each task');
is($notified[0][0], 'coord_queue_q', 'by its name');
isnt($notified[0][1], $dbh->{pg_pid}, 'and not by the session that made them');
$listener->disconnect;
clear();

### More queues than there is room for in shared memory.
$dbh->do(q{SELECT coord.saga_define('many ' || i, ARRAY[coord.step('s', queue => 'many ' || i)]) FROM generate_series(1, 300) i});
$dbh->do(q{SELECT coord.saga_start('many ' || i, key => 'many ' || i) FROM generate_series(1, 300) i});
eventually('handed out', $dbh, '300', q{SELECT count(*) FROM coord_internal.task});
is(one($dbh, q{SELECT count(claim('many ' || i)) FROM generate_series(1, 300) i}), 300, 'three hundred queues');
is(one($dbh, q{SELECT count(coord.task_release(id, token)) FROM coord_internal.task}), 300, 'given back');
is(one($dbh, q{SELECT count(claim('many ' || i)) FROM generate_series(1, 300) i}), 300, 'claimed again');
$dbh->do(q{SELECT coord.queue_configure('many ' || i, max_running => 1, rate_limit => 0.001) FROM generate_series(290, 300) i});
is(one($dbh, q{SELECT count(claim('many ' || i)) FROM generate_series(290, 300) i}), 0, 'limits hold');
clear();

### A standby only shows.
$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('tasks_standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
start('one', 's');
eventually('ready', $dbh, '1', q{SELECT ready('q')});
$node->wait_for_catchup($standby);
my $other = session($standby, 'postgres');
like(error_of($other, q{SELECT coord.task_claim('q')}), qr/^25006 coord.task_claim\(\) cannot be executed during recovery/,
  'no claims on a standby');
like(error_of($other, q{CALL coord.await('queue', 'q')}), qr/^25006/, 'nor waiting for them');
is(one($other, q{SELECT ready('q')}), 1, 'but to be seen');
$other->disconnect;
$dbh->disconnect;
$node->stop;
$standby->promote;
$dbh = session($standby, 'postgres');
is(claim('q'), 's', 'after promotion they can be claimed');
$dbh->disconnect;
$standby->stop;
done_testing();
