# Runs TAP test files as prove does, shows the log's end of those that fail, and
# writes "passed failed", counted in assertions, to the file $COORD_TAP_TOTALS.
# A skipped or TODO assertion has failed, and so has a file that says that it
# skips itself, exits with an error or stops before the end.

use strict;
use warnings FATAL => 'all';
use File::Basename qw(basename);
use TAP::Harness;

my $harness = TAP::Harness->new(
  {
    jobs => $ENV{COORD_TAP_JOBS} || 1,
    failures => 1,
    timer => 1,
  });
my $aggregate = $harness->runtests(@ARGV);

my ($passed, $failed) = (0, 0);
foreach my $file ($aggregate->descriptions)
{
  my ($parser) = $aggregate->parsers($file);
  my %bad = map { $_ => 1 } $parser->failed, $parser->skipped, $parser->todo;
  my $good = grep { !$bad{$_} } $parser->passed;
  my $bad = keys %bad;
  $bad ||= 1 if $good == 0 || $parser->skip_all || $parser->has_problems;
  $passed += $good;
  $failed += $bad;
  next unless $bad;

  my $log = "$ENV{TESTLOGDIR}/regress_log_" . basename($file, '.pl');
  print "$file: $bad failed", ($parser->skip_all ? ', skipped: ' . $parser->skip_all : ''), "\n";
  if (open my $fh, '<', $log)
  {
    my @lines = <$fh>;
    splice @lines, 0, -40 if @lines > 40;
    print "--- end of $log\n", @lines, "---\n";
  }
}

open my $totals, '>', $ENV{COORD_TAP_TOTALS} or die $!;
print $totals "$passed $failed\n";
close $totals or die $!;
exit($failed != 0);
