# Whoever reads the log in order sees every event that is ever committed, once, in order,
# and waits for nobody but those who publish here: many publishers that dawdle between
# taking a position and the end, roll back, roll back to savepoints, prepare and finish
# late, are killed; beside them transactions in another database that stay open.
#
# COORD_SHORT=1: fewer publishers, for a shorter time.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTwophase qw(reconnect);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $publishers = $ENV{COORD_SHORT} ? 12 : 32;
my $readers = 3;
my $seconds = $ENV{COORD_SHORT} ? 6 : 20;
my $seed = $ENV{COORD_SEED} || time;
note "COORD_SEED=$seed";

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
configure($node, shared_preload_libraries => 'coord', restart_after_crash => 'on', max_prepared_transactions => 50,
  max_connections => 80);
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION coord');
$node->safe_psql('postgres', 'CREATE DATABASE other');

# Handlers, one of which fails now and then, and consumers outside that share a subscription.
$node->safe_psql('postgres', q{
  CREATE TABLE handled (n bigserial, subscription text, pos bigint, key text, data jsonb);
  CREATE FUNCTION handle(e coord.event) RETURNS void LANGUAGE sql
    AS $$ INSERT INTO handled (subscription, pos, key, data) VALUES ('each', e.pos, coalesce(e.key, e.stream), e.data) $$;
  CREATE FUNCTION handle_batch(e coord.event[]) RETURNS void LANGUAGE sql
    AS $$ INSERT INTO handled (subscription, pos, key, data) SELECT 'batch', pos, coalesce(key, stream), data FROM unnest(e) ORDER BY pos $$;
  CREATE FUNCTION handle_badly(e coord.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO handled (subscription, pos, key, data) VALUES ('flaky', e.pos, coalesce(e.key, e.stream), e.data);
    IF random() < 0.02 THEN RAISE EXCEPTION 'now and then'; END IF;
  END $$;
  SELECT coord.subscribe('each', '{torture}', 'handle', start_from => 'beginning');
  SELECT coord.subscribe('batch', '{torture}', 'handle_batch', mode => 'batch', start_from => 'beginning');
  SELECT coord.subscribe('flaky', '{torture}', 'handle_badly', max_attempts => 100, start_from => 'beginning');
  SELECT coord.subscribe('outside', '{torture}', start_from => 'beginning', max_attempts => 1000)});
my $dir = PostgreSQL::Test::Utils::tempdir;
my ($stop_publishing, $stop_reading) = ("$dir/stop_publishing", "$dir/stop_reading");

# A child process; what it says goes to a file of its name.
sub child
{
  my ($name, $code) = @_;
  my $pid = fork();
  die 'fork' if !defined $pid;
  return $pid if $pid;
  open my $out, '>', "$dir/$name";
  $out->autoflush(1);
  my $ok = eval { $code->($out); 1 };
  print $out 'ERROR ' . $@ =~ s/\n/ /gr . "\n" if !$ok;
  close $out;
  require POSIX;
  POSIX::_exit(0);
}

sub connect_child
{
  my $dbh = reconnect($node);
  $dbh->{AutoInactiveDestroy} = 1;
  $dbh->{pg_server_prepare} = 0;
  return $dbh;
}

# Publishes, and says what it knows to be committed: "committed N" for each event.
sub publish
{
  my ($number, $out) = @_;
  srand $seed + $number;
  my $dbh = connect_child();
  my $n = 0;
  my $prepared = 0;
  until (-e $stop_publishing)
  {
    my @mine;
    my $one = sub {
      my ($way) = @_;
      my $data = sprintf '{"p": %d, "n": %d}', $number, ++$n;
      if ($way < 0.7) { one($dbh, 'SELECT coord.publish(?, ?, ?)', 'torture', $data, "key $number") }
      elsif ($way < 0.85) { one($dbh, q{SELECT coord.publish_many('torture', ARRAY[?]::jsonb[], ARRAY[?])}, $data, "key $number") }
      else { one($dbh, 'SELECT coord.append(?, ?, ?)', "stream $number", 'torture', $data) }
      return $n;
    };
    my $done = eval {
      my $what = rand;
      $dbh->do('BEGIN');
      foreach (1 .. 1 + int rand 3)
      {
        if (rand() < 0.2)
        {
          $dbh->do('SAVEPOINT s');
          $one->(rand);
          $dbh->do('ROLLBACK TO s');
        }
        push @mine, $one->(rand);
        sleep rand(0.02) if rand() < 0.4;
      }
      if ($what < 0.15)
      {
        $dbh->do('ROLLBACK');
        @mine = ();
      }
      elsif ($what < 0.35)
      {
        my $gid = "torture $number " . ++$prepared;
        $dbh->do("PREPARE TRANSACTION '$gid'");
        sleep rand 0.1;
        my $commit = rand() < 0.6;
        $dbh->do(($commit ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$gid'");
        @mine = () if !$commit;
      }
      else
      {
        $dbh->do('COMMIT');
      }
      1;
    };
    if ($done)
    {
      print $out "committed $_\n" foreach @mine;
      next;
    }
    my $error = $@;
    # Killed, or somebody else was: what became of it the table says.
    die $error if $dbh->ping;
    # It may be killed again meanwhile.
    my $tidy;
    until ($tidy)
    {
      eval { $dbh->disconnect };
      $dbh = connect_child();
      $tidy = eval {
        $dbh->do("COMMIT PREPARED '$_'")
          foreach @{ $dbh->selectcol_arrayref("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'torture $number %'") };
        1;
      };
      die $@ if !$tidy && $dbh->ping;
    }
  }
  $dbh->disconnect;
  return;
}

# Reads on from where it was, and says what it saw.
sub read_log
{
  my ($number, $out) = @_;
  srand $seed + 1000 + $number;
  my $dbh = connect_child();
  my $after = 0;
  while (1)
  {
    my $last = -e $stop_reading;
    my $rows = eval {
      $dbh->do('BEGIN ISOLATION LEVEL REPEATABLE READ') if $number == 2;
      my $found = $dbh->selectall_arrayref('SELECT pos, type, data FROM coord.log_read(?, ?)', undef, $after, 1 + int rand 200);
      $dbh->do('COMMIT') if $number == 2;
      $found;
    };
    if (!$rows)
    {
      my $error = $@;
      die $error if $dbh->ping;
      eval { $dbh->disconnect };
      $dbh = connect_child();
      next;
    }
    print $out "$_->[0] $_->[2]\n" foreach @$rows;
    $after = $rows->[-1][0] if @$rows;
    last if $last && !@$rows;
    sleep rand 0.01 if !@$rows;
  }
  $dbh->disconnect;
  return;
}

# A consumer outside: what it has acknowledged goes to its file.
sub consume
{
  my ($number, $out) = @_;
  srand $seed + 2000 + $number;
  my $dbh = connect_child();
  my $idle_since = 0;
  while (!$idle_since || time - $idle_since < 4)
  {
    my $events = eval { $dbh->selectall_arrayref(q{SELECT token, pos, data, coalesce(key, stream)
      FROM coord.subscription_poll('outside', ?, '2 s')}, undef, 1 + int rand 50) };
    my @done;
    my $what = rand;
    my $ok = $events && eval {
      if (!@$events) { }
      elsif ($what < 0.1)
      {
        my $upto = $events->[rand @$events][1];
        @done = grep { $_->[1] <= $upto } @$events;
        one($dbh, q{SELECT coord.subscription_ack('outside', ?, ?)}, $events->[0][0], $upto);
      }
      elsif ($what < 0.2) { one($dbh, q{SELECT coord.subscription_nack('outside', ?, retry_in => '100 ms')}, $events->[0][0]) }
      elsif ($what < 0.22) { sleep 2.2 }
      else
      {
        @done = @$events;
        one($dbh, q{SELECT coord.subscription_ack('outside', ?)}, $events->[0][0]);
      }
      1;
    };
    if (!$ok)
    {
      my $error = $@;
      next if $dbh->state eq 'ZC001';
      die $error if $dbh->ping;
      eval { $dbh->disconnect };
      $dbh = connect_child();
      next;
    }
    print $out sprintf("%.6f %s %s\n", time, $_->[1], $_->[3]) foreach @done;
    $idle_since = 0 if @$events;
    $idle_since ||= time if -e $stop_reading && !@$events;
    sleep 0.02 if !@$events;
  }
  $dbh->disconnect;
  return;
}

# In another database: an open writer and a prepared one, all the time.
my $prepared_there = session($node, 'other');
$prepared_there->do('CREATE TABLE t (i int)');
$prepared_there->do('BEGIN');
$prepared_there->do('INSERT INTO t VALUES (1)');
$prepared_there->do(q{PREPARE TRANSACTION 'elsewhere'});
my $open_there = session($node, 'other');
$open_there->do('BEGIN');
$open_there->do('INSERT INTO t VALUES (2)');
# And here one that writes, and publishes nothing.
$node->safe_psql('postgres', 'CREATE TABLE t (i int)');
my $writer = session($node, 'postgres');
$writer->do('BEGIN');
$writer->do('INSERT INTO t VALUES (1)');
$_->{AutoInactiveDestroy} = 1 foreach $prepared_there, $open_there, $writer;

my @reading = map { my $n = $_; child("reader$n", sub { read_log($n, @_) }) } 1 .. $readers;
my @consuming = map { my $n = $_; child("consumer$n", sub { consume($n, @_) }) } 1 .. 2;
my @publishing = map { my $n = $_; child("publisher$n", sub { publish($n, @_) }) } 1 .. $publishers;

# A backend is killed now and then; each time the whole server starts again.
my $kills = 0;
my $end = time + $seconds;
srand $seed;
while (time < $end)
{
  sleep $seconds / 4;
  last if time >= $end;
  my $monitor = reconnect($node);
  my $pid = one($monitor, q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
    AND state = 'idle in transaction' AND datname = 'postgres' AND query !~ 'INSERT INTO t' ORDER BY random() LIMIT 1});
  $kills += kill 'KILL', $pid if $pid;
  eval { $monitor->disconnect };
}
append_to_file($stop_publishing, '');
waitpid $_, 0 foreach @publishing;
my $dbh = reconnect($node);
foreach my $gid (@{ $dbh->selectcol_arrayref(q{SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'torture%'}) })
{
  $dbh->do("COMMIT PREPARED '$gid'");
}
append_to_file($stop_reading, '');
waitpid $_, 0 foreach @reading;
waitpid $_, 0 foreach splice @consuming;

cmp_ok($kills, '>', 0, "$kills kills");
my @truth = map { "$_->[0] $_->[1]" } @{ $dbh->selectall_arrayref('SELECT pos, data FROM coord.events ORDER BY pos') };
cmp_ok(scalar(@truth), '>', $publishers * 10, scalar(@truth) . ' events are committed');
foreach my $n (1 .. $readers)
{
  my @seen = split /\n/, slurp_file("$dir/reader$n");
  is(scalar(@seen), scalar(@truth), "reader $n has seen as many");
  my $wrong = 0;
  $wrong++ while $wrong < @seen && $wrong < @truth && $seen[$wrong] eq $truth[$wrong];
  is($seen[$wrong] // 'the end', $truth[$wrong] // 'the end', "reader $n has seen what is committed, once and in order");
}

# Handlers were handed each once, and those of a key in order.
foreach my $subscription (qw(each batch flaky))
{
  my $all = q{SELECT count(*) FROM handled WHERE subscription = ?};
  eventually("$subscription: as many events as there are", $dbh, scalar(@truth), $all, $subscription);
  is(one($dbh, q{SELECT count(DISTINCT h.pos) FROM handled h JOIN coord.events e ON e.pos = h.pos AND e.data = h.data
    WHERE subscription = ?}, $subscription), scalar(@truth), "$subscription: each once");
  is(one($dbh, q{SELECT count(*) FROM (SELECT pos, lag(pos) OVER (PARTITION BY key ORDER BY n) AS before FROM handled
    WHERE subscription = ?) AS x WHERE pos < before}, $subscription), 0, "$subscription: of each key in order");
}
is(join(' ', map { join ',', @$_ } @{ $dbh->selectall_arrayref('SELECT name, parked, waiting FROM coord.subscriptions ORDER BY name') }),
  'batch,0,0 each,0,0 flaky,0,0 outside,0,0', 'nothing is left');
my (%consumed, @consumer_errors);
foreach my $n (1, 2)
{
  foreach my $line (split /\n/, slurp_file("$dir/consumer$n"))
  {
    push @consumer_errors, $line if $line =~ /^ERROR/;
    $consumed{$1}++ if $line =~ /^\S+ (\d+)/;
  }
}
is_deeply(\@consumer_errors, [], 'consumers meet no errors');
is(scalar(grep { !$consumed{ (split)[0] } } @truth), 0, 'consumers outside have had every event');
is(scalar(keys %consumed), scalar(@truth), 'and none that there is not');

# What was acknowledged is there, and of each publisher in order.
my (%there, %last, @disorder);
foreach (@truth)
{
  my ($n, $p) = /"n": (\d+), "p": (\d+)/ or die $_;
  push @disorder, $_ if ($last{$p} // 0) >= $n;
  $last{$p} = $n;
  $there{"$p $n"}++;
}
is_deeply(\@disorder, [], 'the events of each key are in the order in which they were published');
my (@lost, @errors);
foreach my $p (1 .. $publishers)
{
  foreach my $line (split /\n/, slurp_file("$dir/publisher$p"))
  {
    push @errors, "publisher $p: $line" if $line =~ /^ERROR/;
    push @lost, "$p $1" if $line =~ /^committed (\d+)/ && !$there{"$p $1"};
  }
}
is_deeply(\@lost, [], 'what was acknowledged is there');
is_deeply(\@errors, [], 'nobody met an error that he should not');
is(one($dbh, 'SELECT count(*) FROM coord.horizon_holders'), 0, 'nobody holds the horizon back');
my $gaps = $dbh->selectcol_arrayref(q{SELECT stream FROM coord_internal.stream_event GROUP BY stream HAVING max(version) <> count(*)});
is_deeply($gaps, [], 'versions of streams have no gaps');

# Strangers were there all the time, and still are.
is(one($dbh, q{SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'elsewhere'}), 1, 'the stranger is still prepared');
one($dbh, q{SELECT coord.publish('behind strangers')});
is(one($dbh, q{SELECT count(*) FROM coord.log_read(0, NULL, '{behind*}')}), 1, 'and nobody waits for him');

### Eight who append to one stream with the version that they have read

{
  my $wins = $ENV{COORD_SHORT} ? 100 : 400;
  my @appending = map {
    my $n = $_;
    child("appender$n", sub {
      my ($out) = @_;
      my $session = connect_child();
      while ((my $version = one($session, q{SELECT coord.stream_version('contended')})) < $wins)
      {
        my $new = eval { one($session, q{SELECT coord.append('contended', 'won', ?, ?)}, "{\"by\": $n}", $version) };
        die $@ if !$new && $session->state ne 'ZC003';
        print $out 'won ' . $new . "\n" if $new;
      }
      $session->disconnect;
    })
  } 1 .. 8;
  waitpid $_, 0 foreach @appending;
  my @won;
  my $failed = '';
  foreach my $n (1 .. 8)
  {
    my $said = slurp_file("$dir/appender$n");
    $failed .= $1 if $said =~ /(ERROR.*)/;
    $won[$1] .= $n while $said =~ /won (\d+)/g;
  }
  is($failed, '', 'those who lose get ZC003');
  my $last = one($dbh, q{SELECT coord.stream_version('contended')});
  cmp_ok($last, '>=', $wins, "$last versions");
  is(join(',', map { length($won[$_] // '') } 1 .. $last), join(',', (1) x $last), 'each version was won by one');
  is(join(',', map { $won[$_] } 1 .. $last),
    one($dbh, q{SELECT string_agg(data ->> 'by', ',' ORDER BY version) FROM coord.stream_read('contended')}), 'by the one whose event it is');
}

### A prepared publisher is remembered over a restart

$dbh->disconnect;
{
  my $session = session($node, 'postgres');
  $session->do('BEGIN');
  my $first = one($session, q{SELECT coord.publish('restart.prepared')});
  $session->do(q{PREPARE TRANSACTION 'over a restart'});
  one($session, q{SELECT coord.publish('restart.behind')});
  is(one($session, q{SELECT count(*) FROM coord.log_read(0, NULL, '{restart.*}')}), 0, 'a prepared publisher holds back what is behind it');
  $session->disconnect;
  foreach my $how (qw(fast immediate))
  {
    $node->restart if $how eq 'fast';
    if ($how eq 'immediate')
    {
      $node->stop('immediate');
      $node->start;
    }
    $session = session($node, 'postgres');
    one($session, q{SELECT coord.publish('restart.later')});
    is(one($session, q{SELECT count(*) FROM coord.log_read(0, NULL, '{restart.*}')}), 0, "also after a restart ($how)");
    is(one($session, 'SELECT position FROM coord.horizon_holders WHERE gid = ?', 'over a restart') <= $first, 1, 'coord.horizon_holders names it');
    $session->disconnect;
  }
  $session = session($node, 'postgres');
  $session->do(q{COMMIT PREPARED 'over a restart'});
  is(one($session, q{SELECT string_agg(type, ',' ORDER BY pos) FROM coord.log_read(0, NULL, '{restart.*}')}),
    'restart.prepared,restart.behind,restart.later,restart.later', 'then all are there, in order');
  $session->disconnect;
}

unlike(slurp_file($node->logfile), qr/PANIC|TRAP:/, 'nothing worse than that in the log');
$node->safe_psql('other', q{ROLLBACK PREPARED 'elsewhere'});
$node->stop;
done_testing();
