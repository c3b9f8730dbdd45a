# Workers outside the database, for tests: claiming and ending tasks by DBI, in this
# process or in another one that can be killed.
package CoordTasks;

use strict;
use warnings FATAL => 'all';
use DBD::Pg;
use Exporter 'import';
use IO::Handle;
use IO::Select;
use POSIX ();

our @EXPORT = qw(claim claim_one claim_later claimed complete outside heard kill_outside);

sub claim_statement
{
  my (%options) = @_;
  my @names = sort keys %options;
  return ('SELECT * FROM coord.task_claim(?' . join('', map { ", $_ => ?" } @names) . ')', @options{@names});
}

# Tasks of a queue, as hashes.
sub claim
{
  my ($dbh, $queue, %options) = @_;
  my ($sql, @values) = claim_statement(%options);
  return @{ $dbh->selectall_arrayref($sql, { Slice => {} }, $queue, @values) };
}

# One task, waited for.
sub claim_one
{
  my ($dbh, $queue, %options) = @_;
  my ($task) = claim($dbh, $queue, timeout => '15 s', %options);
  die "no task came in queue $queue" unless $task;
  return $task;
}

# Begin to claim, and get what was claimed.
sub claim_later
{
  my ($dbh, $queue, %options) = @_;
  my ($sql, @values) = claim_statement(%options);
  my $statement = $dbh->prepare($sql, { pg_async => DBD::Pg::PG_ASYNC() });
  $statement->execute($queue, @values);
  return [ $dbh, $statement ];
}

sub claimed
{
  my ($later) = @_;
  my ($dbh, $statement) = @$later;
  $dbh->pg_result;
  my @tasks;
  while (my $task = $statement->fetchrow_hashref)
  {
    push @tasks, {%$task};
  }
  # When this handle goes later, it would take the next statement with it.
  @$later = ();
  return @tasks;
}

sub complete
{
  my ($dbh, $task, $result) = @_;
  return $dbh->selectrow_array('SELECT coord.task_complete(?, ?, ?)', undef, @$task{qw(task_id token)}, $result);
}

# A process that runs $code, which is given a function to say something with, and
# waits then to be killed.
sub outside(&)
{
  my ($code) = @_;
  pipe(my $reader, my $writer) or die $!;
  my $pid = fork // die $!;
  if ($pid == 0)
  {
    close $reader;
    $writer->autoflush(1);
    eval { $code->(sub { print $writer join(' ', @_), "\n" }); sleep 600; 1 }
      or print $writer 'died: ', $@ =~ s/\n/ /gr, "\n";
    POSIX::_exit(1);
  }
  close $writer;
  return { pid => $pid, reader => $reader };
}

# The next that it says.
sub heard
{
  my ($outside) = @_;
  IO::Select->new($outside->{reader})->can_read(30) or die 'a worker outside says nothing';
  my $line = readline($outside->{reader}) // '';
  chomp $line;
  return $line;
}

sub kill_outside
{
  my ($outside) = @_;
  kill 'KILL', $outside->{pid};
  waitpid $outside->{pid}, 0;
  return;
}

1;
