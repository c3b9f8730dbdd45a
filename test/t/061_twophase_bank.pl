# A bank whose accounts are in three clusters, with transfers between them in two
# phases, while processes and servers of all three are killed at random.  Then the total
# is what it was, each transfer has happened on all clusters that it was for or on none,
# as its client was told, and nothing is in doubt a minute later, without an operator.
#
# COORD_SHORT=1 for 100 transfers and 4 kills instead of 1,000 and 20.  COORD_SEED
# repeats a run, as far as that is possible.

use strict;
use warnings FATAL => 'all';
use CoordCluster;
use CoordTwophase;
use List::Util qw(shuffle);
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $short = $ENV{COORD_SHORT};
my $enough = $short ? 100 : 1000;
my $kills_wanted = $short ? 4 : 20;
my $nclients = 4;
my $time_limit = $short ? 120 : 400;
my $seed = $ENV{COORD_SEED} || int(rand(2**31));
note "COORD_SEED=$seed";

my @participants = map { new_participant($_) } qw(p1 p2);
my $main = new_coordinator('main', \@participants, 'lock_timeout' => '2s', 'coord.twophase_lock_timeout' => '1s',
  'coord.twophase_prepare_timeout' => '5s', 'coord.twophase_phase2_timeout' => '1s');
my @nodes = ($main, @participants);
my $total = total(@nodes);
my $dir = PostgreSQL::Test::Utils::tempdir;
my $stop = "$dir/stop";

### Clients

# Statements of a transfer of money from one cluster to another, and at times a third.
# Its name says where it has to have happened.
sub plan_of
{
  my ($client, $n) = @_;
  my @where = shuffle qw(main p1 p2);
  pop @where if rand() < 0.5;
  my $amount = 1 + int rand 10;
  my $name = join '-', $client, $n, sort @where;
  my @steps;
  foreach my $i (0 .. $#where)
  {
    my $change = $i == 0 ? -$amount * $#where : $amount;
    push @steps, [ $where[$i], sprintf q{WITH m AS (INSERT INTO mark VALUES ('%s')) UPDATE acc SET bal = bal + (%d) WHERE id = %d},
      $name, $change, 1 + int rand 10 ];
  }
  return ($name, sort { $a->[0] cmp $b->[0] } @steps);
}

sub run_plan
{
  my ($dbh, @steps) = @_;
  if (rand() < 0.5)
  {
    my $branches = join ', ', map {
      my ($where, $sql) = @$_;
      'coord.branch(' . ($where eq 'main' ? 'NULL' : "'$where'") . ', ' . $dbh->quote($sql) . ', expect_rows => 1)'
    } @steps;
    my $at = rand() < 0.5 ? 'applied' : 'decided';
    my $row = $dbh->selectrow_arrayref("CALL coord.twophase_run(ARRAY[$branches], '$at')");
    die 'not committed' unless $row->[1] eq 'committed';
    return;
  }
  $dbh->do('BEGIN');
  foreach (@steps)
  {
    my ($where, $sql) = @$_;
    if ($where eq 'main') { $dbh->do($sql) }
    else { one($dbh, 'SELECT coord.remote_exec(?, ?)', $where, $sql) }
  }
  $dbh->do('COMMIT');
  return;
}

# Each line of the client's file: what it was told of a transfer, and its name.
sub client
{
  my ($number) = @_;
  srand($seed + $number);
  open my $file, '>', "$dir/client$number" or die;
  $file->autoflush(1);
  my $dbh;
  for (my $n = 1; !-e $stop; $n++)
  {
    $dbh = eval { session($main, 'postgres') } unless $dbh;
    unless ($dbh)
    {
      sleep 0.05;
      next;
    }
    my ($name, @steps) = plan_of($number, $n);
    if (eval { run_plan($dbh, @steps); 1 })
    {
      print $file "committed $name\n";
      next;
    }
    my $state = $dbh->state || '';
    my $message = $dbh->errstr || '';

    # An error of the server's says that nothing happened, except ZC009.
    my $told = $state =~ /^(08|57P0[12])/ || $message !~ /^ERROR/ ? 'unknown' : $state eq 'ZC009' ? 'doubt' : 'failed';
    print $file "$told $name $state\n";
    if ($told eq 'unknown' || !eval { $dbh->do('ROLLBACK'); 1 })
    {
      eval { $dbh->disconnect };
      $dbh = undef;
    }
  }
  close $file;
  return;
}

sub commits
{
  my $count = 0;
  foreach (glob "$dir/client*")
  {
    my @lines = grep { /^committed/ } split /\n/, slurp_file($_);
    $count += @lines;
  }
  return $count;
}

my @clients;
foreach my $number (1 .. $nclients)
{
  my $pid = fork // die 'cannot fork';
  if ($pid == 0)
  {
    my $ok = eval { client($number); 1 };
    print STDERR $@ unless $ok;
    POSIX::_exit($ok ? 0 : 1);
  }
  push @clients, $pid;
}

### Kills

srand($seed);
my %kills;

# One process of a cluster, which then starts anew, or its postmaster.
sub kill_one
{
  my ($node, $kind) = @_;
  if ($kind eq 'postmaster')
  {
    kill_postmaster($node);
    restart_dead($node);
    $kills{ $node->name }++;
    return;
  }
  my $dbh = reconnect($node);
  my $pids = eval {
    $dbh->selectcol_arrayref(q{SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type ~ ?},
      undef, $kind eq 'resolver' ? 'resolver' : 'client backend')
  } || [];
  eval { $dbh->disconnect };
  return unless @$pids;
  $kills{ $node->name }++ if kill 'KILL', $pids->[ int rand @$pids ];
  return;
}

sub kills
{
  my $count = 0;
  $count += $_ foreach values %kills;
  return $count;
}

my @targets;
my $begin = time;
while ((commits() < $enough || kills() < $kills_wanted) && time < $begin + $time_limit)
{
  my $next = $enough * (kills() + 1) / ($kills_wanted + 1);
  if (kills() < $kills_wanted && commits() >= $next)
  {
    # Once each cluster, again and again; the resolver is there at times only.
    @targets = shuffle($main, $main, @participants) unless @targets;
    my $node = shift @targets;
    kill_one($node, $node == $main && rand() < 0.3 ? 'resolver' : rand() < 0.6 ? 'backend' : 'postmaster');
  }
  sleep 0.02;
}
append_to_file($stop, '');
my $failed = 0;
foreach (@clients)
{
  waitpid $_, 0;
  $failed++ if $? != 0;
}
is($failed, 0, 'clients went on to the end');
cmp_ok(commits(), '>=', $enough, commits() . ' transfers were committed');
cmp_ok(kills(), '>=', $kills_wanted, kills() . ' kills');
is(scalar(grep { $kills{ $_->name } } @nodes), 3, 'of all three clusters: ' . join(', ', map { "$_ $kills{$_}" } sort keys %kills));

### What must hold

is(settled(@nodes), '', 'nothing is left');
is(total(@nodes), $total, 'the total is what it was');

my %found;
foreach my $node (@nodes)
{
  my $dbh = reconnect($node);
  push @{ $found{$_} }, $node->name foreach @{ $dbh->selectcol_arrayref('SELECT name FROM mark') };
  $dbh->disconnect;
}
my @torn = grep {
  my (undef, undef, @where) = split /-/;
  join(' ', @where) ne join(' ', sort @{ $found{$_} })
} sort keys %found;
is(join(', ', map { "$_ at @{$found{$_}}" } @torn), '', 'each transfer happened everywhere or nowhere');

my (@lost, @undead, %told);
foreach (map { split /\n/, slurp_file($_) } glob "$dir/client*")
{
  my ($what, $name) = split / /;
  $told{$what}++;
  push @lost, $name if $what eq 'committed' && !$found{$name};
  push @undead, $_ if $what eq 'failed' && $found{$name};
}
note join ', ', map { "$told{$_} $_" } sort keys %told;
is(join(', ', @lost), '', 'what a client was told to be committed is there');
is(join(', ', @undead), '', 'what a client was told to have failed is not');
unlike(slurp_file($main->logfile), qr/PANIC|TRAP:/, 'nothing worse in the log');
$_->stop foreach @nodes;
done_testing();
